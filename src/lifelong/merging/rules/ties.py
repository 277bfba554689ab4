"""Trim, elect sign and merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.quantile import cuts
from lifelong.merging.rule import Array, Rule, Site, Stack, namespace
from lifelong.merging.rules.task_arithmetic import task_vectors
from lifelong.settings import setting


@dataclass(frozen=True)
class TIES(Rule):
    """Average, number by number, the trimmed task vectors that agree with the elected sign.

    Yadav et al. 2023, 2306.01708. Trim: of each task vector keep the share `density` of largest magnitude, over the
    tensor. Elect: the sign of `sum_t w_t tau_t`. Merge: `theta_0 + lambda sum_{t in A} w_t tau_t / sum_{t in A} w_t`
    over the experts A whose trimmed number has the elected sign.

    Numbers equal to the least one kept are all kept: coarse formats have many, and no order among them is better.
    """

    family: ClassVar[str] = "task vectors"
    paper: ClassVar[str] = "2306.01708"
    needs_base: ClassVar[bool] = True
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}
    per_expert: ClassVar[tuple[str, ...]] = ("weight", "density")

    density: float | tuple[float, ...] = setting(0.2, "share of each task vector that is kept, 0 to 1", ge=0, le=1)
    weight: float | tuple[float, ...] = setting(1.0, "of each expert, or one for all")
    normalize: bool = setting(True, "divide by the weights of the experts that agree")
    scale: float = setting(1.0, "lambda, the scale of the merged task vector")

    def survey(self, stack: Stack) -> list[float]:
        """Return the least magnitude that is kept of each expert."""
        keep = [round(density * stack.size) for density in self.each("density", len(stack.experts))]
        return cuts(stack, _magnitudes, keep)

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        weights = self.each("weight", len(experts))
        trimmed = task_vectors(base, experts)
        for each, cut, weight in zip(trimmed, facts, weights, strict=True):
            each *= namespace(each).abs(each) >= cut
            if weight != 1:
                each *= weight
        merged = agreeing(trimmed, weights, self.normalize)
        merged *= self.scale
        merged += base
        return merged


def agreeing(weighted: list[Array], weights: list[float], normalize: bool) -> Array:
    """Return the sum of the weighted task vectors that have the sign of their sum, by their weights if `normalize`."""
    xp = namespace(weighted[0])
    total = xp.zeros_like(weighted[0])
    for each in weighted:
        total += each
    elected = xp.astype(total >= 0, total.dtype)
    elected *= 2
    elected -= 1
    merged, mass = xp.zeros_like(total), xp.zeros_like(total)
    for each, weight in zip(weighted, weights, strict=True):
        each *= elected
        # Positive where it agrees, and 0 where it was trimmed.
        agrees = xp.astype(each > 0, total.dtype)
        each *= agrees
        merged += each
        if normalize:
            agrees *= abs(weight)
            mass += agrees
    merged *= elected
    if normalize:
        mass += xp.astype(mass == 0, mass.dtype)
        merged /= mass
    return merged


def _magnitudes(base: Array | None, experts: list[Array]) -> list[Array]:
    return [namespace(each).abs(each) for each in task_vectors(base, experts)]
