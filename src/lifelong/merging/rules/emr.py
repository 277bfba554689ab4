"""Elect, mask and rescale: the elected part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.rule import Array, Rule, Site, choose, namespace
from lifelong.merging.rules.task_arithmetic import task_vectors


@dataclass(frozen=True)
class EMR(Rule):
    """Elect one task vector, number by number: the sign of the sum, the largest magnitude that has it.

    Huang et al. 2024, 2405.17461: `theta_0 + tau`, `tau = g max_t max(g tau_t, 0)`, `g = sign(sum_t tau_t)`. That is
    the part that all tasks share, and all that one model can hold: their method answers with a different model for each
    task, made of this one by a mask and a scale (`lifelong.merging.modulators` makes, keeps and applies them). Alone,
    the elected model overshoots: every number is the largest of its task vectors.
    """

    family: ClassVar[str] = "task vectors"
    paper: ClassVar[str] = "2405.17461"
    needs_base: ClassVar[bool] = True

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        merged = elected(task_vectors(base, experts))
        merged += base
        return merged


def elected(changes: list[Array]) -> Array:
    """Return the elected task vector; `changes` are left as they are."""
    xp = namespace(changes[0])
    total = xp.zeros_like(changes[0])
    for each in changes:
        total += each
    sign = 2 * xp.astype(total >= 0, total.dtype) - 1
    most = xp.zeros_like(total)
    for each in changes:
        along = each * sign
        most = choose(along > most, along, most)
    most *= sign
    return most
