"""Averaging by importance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.errors import InputError
from lifelong.merging.rule import Array, Folding, Site, Stack, choose, namespace
from lifelong.settings import setting


@dataclass(frozen=True)
class Fisher(Folding):
    """Average the experts, number by number, by how much each matters: `sum_t w_t F_t theta_t / sum_t w_t F_t`.

    Matena & Raffel 2022, 2111.09832: the mode of the product of the experts' Laplace approximations. F_t is the
    diagonal of the Fisher information of expert t on its own task (`lifelong.curvature.fisher`). Numbers that matter to
    no expert, and tensors without importances (buffers), are the weighted average.

    They clamp F_t at 1e-6; our floor is 0, as the Fisher of large models is below that nearly everywhere, and the
    result would be the plain average.
    """

    family: ClassVar[str] = "data"
    paper: ClassVar[str] = "2111.09832"
    statistic: ClassVar[str] = "fisher"
    parts: ClassVar[int] = 2
    per_expert: ClassVar[tuple[str, ...]] = ("weight",)

    weight: float | tuple[float, ...] = setting(1.0, "of each expert, or one for all; above 0", gt=0)
    floor: float = setting(0.0, "least importance that a number has", ge=0)

    def survey(self, stack: Stack) -> Any:
        """Return the importances, still to be read."""
        for each in stack.statistics:
            if each.shape != stack.shape:
                raise InputError(f"tensor {stack.name!r} {list(stack.shape)} has importances {list(each.shape)}")
        return stack.statistics

    def fold(
        self, state: list[Array], base: Array | None, expert: Array, index: int, site: Site, known: Any = None
    ) -> list[Array]:
        """Return the weighted average so far, and the importance of each of its numbers."""
        xp = namespace(expert)
        weights = self.each("weight", index + 1)[: index + 1]
        importance = xp.zeros_like(expert) if known is None else xp.astype(known, expert.dtype)
        if known is not None:
            importance[...] = xp.where(importance > self.floor, importance, self.floor)
            importance *= weights[-1]
        if not state:
            return [expert, importance]
        average, total = state
        total += importance
        nowhere = total == 0
        # A share of the total and no sum of products: it neither overflows nor underflows.
        share = importance / choose(nowhere, xp.ones_like(total), total)
        share = choose(nowhere, xp.full_like(total, weights[-1] / sum(weights)), share)
        moved = average + share * (expert - average)
        # The first that cares has all of it, to the bit.
        return [choose(share == 1, expert, moved), total]

    def finish(self, state: list[Array], base: Array | None, experts: int) -> Array:
        return state[0] + 0.0
