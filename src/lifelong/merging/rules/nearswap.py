"""Take from another model what is near already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.rule import Array, Rule, Site, namespace
from lifelong.merging.rules.task_arithmetic import task_vectors
from lifelong.settings import setting


@dataclass(frozen=True)
class NearSwap(Rule):
    """Move each number towards the expert's by `t` at most: `theta_0 + min(1, t / |tau|) tau`.

    mergekit's method of that name: numbers nearer to each other than `t` are the expert's.
    """

    family: ClassVar[str] = "task vectors"
    needs_base: ClassVar[bool] = True
    most: ClassVar[int | None] = 1

    t: float = setting(0.001, "the farthest that a number moves, at least 0", ge=0)

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        (moved,) = task_vectors(base, experts)
        moved = namespace(moved).clip(moved, -self.t, self.t)
        moved += base
        return moved
