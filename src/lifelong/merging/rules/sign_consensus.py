"""Only what the experts agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.rule import Array, Folding, Site, namespace
from lifelong.merging.rules.sign import of_sign, split
from lifelong.settings import setting


@dataclass(frozen=True)
class SignConsensus(Folding):
    """Average the changes that at least the share `agreement` of the experts make in the same direction.

    `theta_0 + lambda sum_{t in A} w_t tau_t / sum_{t in A} w_t`, A the experts of the sign that most have, where these
    are `agreement T` or more; else the base. TIES elects by mass and always has a winner; this counts heads, needs
    more than half, and an expert that left a number as it was agrees with nobody.
    """

    family: ClassVar[str] = "task vectors"
    needs_base: ClassVar[bool] = True
    parts: ClassVar[int] = 6
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}
    per_expert: ClassVar[tuple[str, ...]] = ("weight",)

    agreement: float = setting(1.0, "share of the experts that must agree, above 0.5 to 1", gt=0.5, le=1)
    weight: float | tuple[float, ...] = setting(1.0, "of each expert, or one for all")
    scale: float = setting(1.0, "lambda, the scale of the merged task vector")

    def fold(
        self, state: list[Array], base: Array | None, expert: Array, index: int, site: Site, known: Any = None
    ) -> list[Array]:
        """Return how many rise and how many fall so far, and what `split` adds up to."""
        xp = namespace(expert)
        weight = self.of_expert("weight", index)
        expert -= base
        heads = [xp.astype(expert > 0, expert.dtype), xp.astype(expert < 0, expert.dtype)]
        expert *= weight
        new = [*heads, *split(expert, weight, normalize=True)]
        for kept, each in zip(state, new, strict=False):
            kept += each
        return state or new

    def finish(self, state: list[Array], base: Array | None, experts: int) -> Array:
        rising, falling, *sums = state
        merged = of_sign(rising > falling, sums)
        # The margin is far above rounding, and below the least share that a head makes.
        merged *= namespace(merged).maximum(rising, falling) >= self.agreement * experts - 1e-6
        merged *= self.scale
        merged += base
        return merged
