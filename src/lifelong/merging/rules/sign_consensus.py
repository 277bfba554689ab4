"""Only what the experts agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.rule import Array, Rule, Site, namespace
from lifelong.merging.rules.sign import agreeing
from lifelong.merging.rules.task_arithmetic import task_vectors
from lifelong.settings import setting


@dataclass(frozen=True)
class SignConsensus(Rule):
    """Average the changes that at least the share `agreement` of the experts make in the same direction.

    `theta_0 + lambda sum_{t in A} w_t tau_t / sum_{t in A} w_t`, A the experts of the sign that most have, where these
    are `agreement T` or more; else the base. TIES elects by mass and always has a winner; this counts heads, needs
    more than half, and an expert that left a number as it was agrees with nobody.
    """

    family: ClassVar[str] = "task vectors"
    needs_base: ClassVar[bool] = True
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}
    per_expert: ClassVar[tuple[str, ...]] = ("weight",)

    agreement: float = setting(1.0, "share of the experts that must agree, above 0.5 to 1", gt=0.5, le=1)
    weight: float | tuple[float, ...] = setting(1.0, "of each expert, or one for all")
    scale: float = setting(1.0, "lambda, the scale of the merged task vector")

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        vectors, weights = task_vectors(base, experts), self.each("weight", len(experts))
        xp = namespace(vectors[0])
        heads = xp.zeros_like(vectors[0])
        for each in vectors:
            heads += xp.sign(each)
        count, needed = xp.zeros_like(heads), self.agreement * len(vectors)
        signs = xp.sign(heads)
        for each in vectors:
            count += xp.astype(each * signs > 0, count.dtype)
        # The margin is far above rounding, and below the least share that a head makes.
        enough = count >= needed - 1e-6
        for each, weight in zip(vectors, weights, strict=True):
            each *= weight
        merged = agreeing(vectors, weights, signs, normalize=True)
        merged *= enough
        merged *= self.scale
        merged += base
        return merged
