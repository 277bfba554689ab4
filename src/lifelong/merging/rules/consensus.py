"""Consensus merging with TALL masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.errors import InputError
from lifelong.merging.rule import Array, Rule, Site, namespace
from lifelong.merging.rules.task_arithmetic import task_vectors
from lifelong.settings import setting


@dataclass(frozen=True)
class Consensus(Rule):
    """Keep, of the summed task vectors, the numbers that matter to several tasks: `theta_0 + lambda m tau`.

    Wang et al. 2024, 2405.07813: `tau = sum_t tau_t`. A number matters to task t where
    `|tau_t| >= threshold_t |tau - tau_t|` (its TALL mask), and m is 1 where it matters to at least `agreement` tasks:
    none needs the others (catastrophic), one alone is selfish. They choose each threshold of 0.2 to 0.6 by validation.
    """

    family: ClassVar[str] = "task vectors"
    paper: ClassVar[str] = "2405.07813"
    needs_base: ClassVar[bool] = True
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}
    least: ClassVar[int] = 2
    per_expert: ClassVar[tuple[str, ...]] = ("threshold",)

    threshold: float | tuple[float, ...] = setting(0.4, "of the TALL mask of each expert, or one for all", ge=0)
    agreement: int = setting(2, "least number of experts that a number must matter to", ge=1)
    scale: float = setting(1.0, "lambda, the scale of the merged task vector")

    def check(self, experts: int) -> None:
        super().check(experts)
        if self.agreement > experts:
            raise InputError(f"rule consensus: agreement = {self.agreement} of {experts} experts would keep nothing")

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        changes = task_vectors(base, experts)
        xp = namespace(changes[0])
        total, votes = xp.zeros_like(changes[0]), xp.zeros_like(changes[0])
        for each in changes:
            total += each
        for each, threshold in zip(changes, self.each("threshold", len(changes)), strict=True):
            votes += xp.astype(tall_mask(each, total, threshold), votes.dtype)
        total *= votes >= self.agreement
        total *= self.scale
        total += base
        return total


def tall_mask(change: Array, total: Array, threshold: float) -> Array:
    """Return where a task's own change is not drowned by those of the others: `|tau_t| >= threshold |tau - tau_t|`."""
    xp = namespace(change)
    return xp.abs(change) >= threshold * xp.abs(total - change)
