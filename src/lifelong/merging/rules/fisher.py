"""Averaging by importance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.errors import InputError
from lifelong.merging.rule import Array, Rule, Site, Stack, choose, namespace
from lifelong.settings import setting


@dataclass(frozen=True)
class Fisher(Rule):
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
    per_expert: ClassVar[tuple[str, ...]] = ("weight",)

    weight: float | tuple[float, ...] = setting(1.0, "of each expert, or one for all; above 0", gt=0)
    floor: float = setting(0.0, "least importance that a number has", ge=0)

    def survey(self, stack: Stack) -> Any:
        """Return the importances, still to be read."""
        for each in stack.statistics:
            if each.shape != stack.shape:
                raise InputError(f"tensor {stack.name!r} {list(stack.shape)} has importances {list(each.shape)}")
        return stack.statistics

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        xp = namespace(experts[0])
        weights = self.each("weight", len(experts))
        stop = site.start + experts[0].shape[0]
        importances = [xp.astype(each.read(site.start, stop), experts[0].dtype) for each in facts]
        if not importances:
            importances = [xp.ones_like(each) for each in experts]
        for each, weight in zip(importances, weights, strict=True):
            each[...] = xp.where(each > self.floor, each, self.floor)
            each *= weight
        # Divided by the largest, the shares neither overflow nor underflow, whatever the scale of the importances.
        most = importances[0]
        for each in importances[1:]:
            most = xp.where(each > most, each, most)
        nowhere = most == 0
        divisor = choose(nowhere, xp.ones_like(most), most)
        shares = [
            choose(nowhere, xp.full_like(most, weight), each / divisor)
            for each, weight in zip(importances, weights, strict=True)
        ]
        return centred_average(experts, shares)


def centred_average(arrays: list[Array], shares: list[Array]) -> Array:
    """Return `sum_t s_t a_t / sum_t s_t`, number by number, exactly `a` where all arrays are `a`; they are changed."""
    first, *others = arrays
    total, moved = namespace(first).zeros_like(first), namespace(first).zeros_like(first)
    for each, share in zip(others, shares[1:], strict=True):
        each -= first
        each *= share
        moved += each
    for share in shares:
        total += share
    moved /= total
    moved += first
    return moved
