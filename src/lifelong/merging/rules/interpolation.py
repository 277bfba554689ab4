"""The straight way from one model to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.rule import Array, Rule, Site
from lifelong.merging.rules.linear import weighted_sum
from lifelong.settings import setting


@dataclass(frozen=True)
class Interpolation(Rule):
    """Go the share `t` of the straight way from the base to the expert: `(1 - t) theta_0 + t theta_1`.

    Wortsman et al. 2022 (2109.01903, WiSE-FT) go from a pretrained model to the fine-tuned one; `t` outside 0 to 1
    extrapolates. A `t` for each layer is a gradient or a filter in a recipe.
    """

    family: ClassVar[str] = "average"
    paper: ClassVar[str] = "2109.01903"
    needs_base: ClassVar[bool] = True
    most: ClassVar[int | None] = 1

    t: float = setting(0.5, "share of the way from the base (0) to the expert (1)")

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        return weighted_sum([base, *experts], [1 - self.t, self.t])
