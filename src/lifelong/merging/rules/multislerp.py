"""The weighted mean of any number of models on the sphere, in one step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lifelong.errors import InputError
from lifelong.merging.gram import gram, lines
from lifelong.merging.rule import Array, Rule, Site, Stack
from lifelong.merging.rules.linear import weighted_sum
from lifelong.merging.rules.task_arithmetic import task_vectors
from lifelong.settings import setting


@dataclass(frozen=True)
class MultiSLERP(Rule):
    """Average directions in the plane that touches the sphere at their weighted mean, and norms linearly.

    mergekit's method of that name. With `u_t = v_t / ||v_t||` for the flattened tensors v_t (task vectors where there
    is a base) and m the direction of `sum_t w_t u_t`: `g = sum_t w_t (u_t - <u_t, m> m)` is taken back to the sphere,
    `(cos(||g||) m + sin(||g||) g / ||g||) sum_t w_t ||v_t||`. Two vectors whose directions cancel are added linearly.
    """

    family: ClassVar[str] = "spherical"
    takes_base: ClassVar[bool] = True
    spelled: ClassVar[Mapping[str, str]] = {"normalize_weights": "normalize"}
    per_expert: ClassVar[tuple[str, ...]] = ("weight",)

    weight: float | tuple[float, ...] = setting(1.0, "of each expert, or one for all")
    normalize: bool = setting(True, "divide the weights by their sum")
    eps: float = setting(1e-8, "norms below this count as 0", gt=0)

    def check(self, experts: int) -> None:
        super().check(experts)
        if self.normalize and sum(self.each("weight", experts)) == 0:
            raise InputError("rule multislerp: the weights sum to zero, and normalize_weights would divide by it")

    def survey(self, stack: Stack) -> list[float]:
        """Return the coefficient of each vector."""
        weights = np.array(self.each("weight", len(stack.experts)), float)
        if self.normalize:
            weights /= weights.sum()
        if len(weights) == 1:
            return [1.0]
        products = gram(stack, vectors_of, lines(stack.shape, "tensor"))[0]
        norms = np.sqrt(np.diag(products))
        # Everything from here on is in coefficients of the directions u_t.
        units = products / np.outer(norms + self.eps, norms + self.eps)
        length = math.sqrt(max(0.0, weights @ units @ weights))
        if length < self.eps:
            if len(weights) > 2 and norms.any():
                raise InputError(f"rule multislerp: in {stack.name!r} the weighted directions cancel: other weights do")
            return list(weights.tolist())
        mean = weights / length
        tangent = weights - mean * (weights @ units @ mean)
        turn = math.sqrt(max(0.0, tangent @ units @ tangent)) + self.eps
        found = (math.cos(turn) * mean + math.sin(turn) / turn * tangent) * (weights @ norms)
        return list((found / (norms + self.eps)).tolist())

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        merged = weighted_sum(vectors_of(base, experts), facts)
        if base is not None:
            merged += base
        return merged


def vectors_of(base: Array | None, experts: list[Array]) -> list[Array]:
    """Return the task vectors, in the memory of the experts; the experts themselves where there is no base."""
    return experts if base is None else task_vectors(base, experts)
