"""Task singular vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.linear_algebra import polar, side_by_side, singular
from lifelong.merging.rule import Array, Rule, Site
from lifelong.merging.rules.regmean import mean
from lifelong.merging.rules.task_arithmetic import task_vectors
from lifelong.settings import setting


@dataclass(frozen=True)
class TSV(Rule):
    """Sum the main singular directions of the task vectors, made orthogonal: `theta_0 + lambda U S V^T`.

    TSV-Merge, Gargiulo et al. 2025, 2412.00081. Of each of T task matrices `tau_t = U_t S_t V_t^T` of rank at most r
    the `r / T` largest directions are kept and put side by side; U and V are the closest orthogonal matrices to
    `[U_1 ... U_T]` and `[V_1 ... V_T]` (Procrustes). Tensors that are no matrices: the mean of the task vectors.
    """

    family: ClassVar[str] = "singular vectors"
    paper: ClassVar[str] = "2412.00081"
    needs_base: ClassVar[bool] = True
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}
    blockwise: ClassVar[bool] = False

    scale: float = setting(1.0, "lambda, the scale of the merged task vector")

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        changes = task_vectors(base, experts)
        if changes[0].ndim != 2:
            return base + self.scale * mean(changes)
        # At least one direction of each, or with more tasks than ranks nothing would be left of any.
        kept = max(1, min(changes[0].shape) // len(changes))
        left, values, right = side_by_side([singular(each).first(kept) for each in changes])
        return base + self.scale * ((polar(left) * values) @ polar(right))
