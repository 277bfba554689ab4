"""Isotropic merging: every direction of the merged task matrix counts the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lifelong.merging.linear_algebra import Singular, polar, side_by_side, singular, supported
from lifelong.merging.rule import Array, namespace
from lifelong.merging.rules.spectral import Spectral
from lifelong.settings import setting


@dataclass(frozen=True)
class IsoC(Spectral):
    """Flatten the spectrum of the summed task vectors: `theta_0 + lambda s U V^T`, `U S V^T = sum_t tau_t`.

    Iso-C, Marczak et al. 2025, 2502.04959; s is the mean singular value. Tensors that are no matrices: the mean of the
    task vectors. Directions that the sum does not reach (it may be of low rank) take no part, here in the mean neither:
    which vectors span them is rounding.
    """

    paper: ClassVar[str] = "2502.04959"

    def together(self, changes: list[Array]) -> Array:
        return _flat(supported(singular(_sum(changes))))


@dataclass(frozen=True)
class IsoCTS(Spectral):
    """Flatten the spectrum of a common subspace and of what each task has outside it.

    Iso-CTS, Marczak et al. 2025, 2502.04959. Of the summed task vectors, of rank at most r, the `common` share of
    directions is kept: `U_c`. Each of T tasks adds the `(r - c) / T` largest directions of
    `tau_t - U_c U_c^T tau_t`. All are put side by side, made orthogonal as in TSV, and get their mean singular value.
    Tensors that are no matrices: the mean of the task vectors.
    """

    paper: ClassVar[str] = "2502.04959"

    common: float = setting(0.8, "share of directions taken from the sum of the task vectors, 0 to 1", ge=0, le=1)

    def together(self, changes: list[Array]) -> Array:
        rank = min(changes[0].shape)
        own = round((rank - int(rank * self.common)) / len(changes))
        # Every task gets as many, so what does not divide goes to the common subspace, or is taken from it.
        shared = supported(singular(_sum(changes))).first(max(0, rank - own * len(changes)))
        rests = [each - shared.left @ (shared.left.T @ each) for each in changes]
        largest = max(float(singular(each).values[0]) for each in changes)
        specific = [supported(singular(rest), largest).first(own) for rest in rests]
        found = side_by_side([*specific, shared])
        return _flat(Singular(polar(found.left), found.values, polar(found.right)))


def _sum(changes: list[Array]) -> Array:
    total = namespace(changes[0]).zeros_like(changes[0])
    for each in changes:
        total += each
    return total


def _flat(found: Singular) -> Array:
    if found.values.shape[0] == 0:
        return found.left @ found.right
    return namespace(found.values).mean(found.values) * (found.left @ found.right)
