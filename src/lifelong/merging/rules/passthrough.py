"""One model's tensor as it is: what stacking layers of several models is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.rule import Array, Rule, Site
from lifelong.settings import setting


@dataclass(frozen=True)
class Passthrough(Rule):
    """Return `scale theta_1` of the only expert."""

    family: ClassVar[str] = "stacking"
    most: ClassVar[int | None] = 1
    per_expert: ClassVar[tuple[str, ...]] = ("scale",)

    scale: float | tuple[float, ...] = setting(1.0, "what the tensor is multiplied by")

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        (only,) = experts
        (scale,) = self.each("scale", 1)
        if scale != 1:
            only *= scale
        return only
