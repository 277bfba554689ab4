"""Task singular vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lifelong.merging.linear_algebra import polar, side_by_side, singular
from lifelong.merging.rule import Array
from lifelong.merging.rules.spectral import Spectral


@dataclass(frozen=True)
class TSV(Spectral):
    """Sum the main singular directions of the task vectors, made orthogonal: `theta_0 + lambda U S V^T`.

    TSV-Merge, Gargiulo et al. 2025, 2412.00081. Of each of T task matrices `tau_t = U_t S_t V_t^T` of rank at most r
    the `r / T` largest directions are kept and put side by side; U and V are the closest orthogonal matrices to
    `[U_1 ... U_T]` and `[V_1 ... V_T]` (Procrustes). Tensors that are no matrices: the mean of the task vectors.
    """

    paper: ClassVar[str] = "2412.00081"

    def together(self, changes: list[Array]) -> Array:
        # At least one direction of each, or with more tasks than ranks nothing would be left of any.
        kept = max(1, min(changes[0].shape) // len(changes))
        left, values, right = side_by_side([singular(each).first(kept) for each in changes])
        return (polar(left) * values) @ polar(right)
