"""The weighted average of models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.errors import InputError
from lifelong.merging.rule import Array, Rule, Site
from lifelong.settings import setting


@dataclass(frozen=True)
class Linear(Rule):
    """Average the experts: `sum_t w_t theta_t / sum_t w_t`, a "model soup" (Wortsman et al. 2022, 2203.05482).

    The base, where one is given, takes no part; list it among the experts if it shall.
    """

    family: ClassVar[str] = "average"
    paper: ClassVar[str] = "2203.05482"
    incremental: ClassVar[bool] = True
    per_expert: ClassVar[tuple[str, ...]] = ("weight",)

    weight: float | tuple[float, ...] = setting(1.0, "of each expert, or one for all")
    normalize: bool = setting(True, "divide by the sum of the weights")

    def check(self, experts: int) -> None:
        super().check(experts)
        if self.normalize and sum(self.each("weight", experts)) == 0:
            raise InputError("rule linear: the weights sum to zero, and normalize would divide by it")

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        weights = self.each("weight", len(experts))
        scale = sum(weights) if self.normalize else 1.0
        return weighted_sum(experts, [weight / scale for weight in weights])


def weighted_sum(arrays: list[Array], weights: list[float]) -> Array:
    """Return `sum_t w_t a_t`, in the memory of the first array; all of them are changed."""
    total = arrays[0]
    total *= weights[0]
    for each, weight in zip(arrays[1:], weights[1:], strict=True):
        each *= weight
        total += each
    return total
