"""The weighted average of models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.errors import InputError
from lifelong.merging.rule import Array, Folding, Site
from lifelong.settings import setting


@dataclass(frozen=True)
class Linear(Folding):
    """Average the experts: `sum_t w_t theta_t / sum_t w_t`, a "model soup" (Wortsman et al. 2022, 2203.05482).

    The base, where one is given, takes no part; list it among the experts if it shall.
    """

    family: ClassVar[str] = "average"
    paper: ClassVar[str] = "2203.05482"
    per_expert: ClassVar[tuple[str, ...]] = ("weight",)

    weight: float | tuple[float, ...] = setting(1.0, "of each expert, or one for all")
    normalize: bool = setting(True, "divide by the sum of the weights")

    def check(self, experts: int) -> None:
        super().check(experts)
        if self.normalize and sum(self.each("weight", experts)) == 0:
            raise InputError("rule linear: the weights sum to zero, and normalize would divide by it")

    def fold(
        self, state: list[Array], base: Array | None, expert: Array, index: int, site: Site, known: Any = None
    ) -> list[Array]:
        return [added(state, expert, self.of_expert("weight", index))]

    def finish(self, state: list[Array], base: Array | None, experts: int) -> Array:
        return state[0] / sum(self.each("weight", experts)) if self.normalize else state[0] + 0.0


def added(state: list[Array], array: Array, weight: float) -> Array:
    """Return the running sum with `weight` times `array` added, in the memory of what there was; `array` is changed."""
    if weight != 1:
        array *= weight
    if not state:
        return array
    state[0] += array
    return state[0]


def weighted_sum(arrays: list[Array], weights: list[Any]) -> Array:
    """Return `sum_t w_t a_t`, in the memory of the first array; all of them are changed.

    Args:
        arrays: at least one.
        weights: a number for each, or an array like it.
    """
    total = arrays[0]
    total *= weights[0]
    for each, weight in zip(arrays[1:], weights[1:], strict=True):
        each *= weight
        total += each
    return total
