"""The mean of models on the sphere: the point from which the ways to all of them cancel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lifelong.merging.gram import gram, lines
from lifelong.merging.rule import Array, Rule, Site, Stack
from lifelong.merging.rules.linear import weighted_sum
from lifelong.settings import setting

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Karcher(Rule):
    """Average directions as Karcher (1977) means them, and norms linearly; a base takes no part.

    With `u_t = theta_t / ||theta_t||`, m minimises `sum_t angle(m, u_t)^2`: from the direction of their mean on, it
    moves along `g = (1/T) sum_t (omega_t / sin(omega_t)) (u_t - cos(omega_t) m)` until `||g|| < tol`. The result is m
    times the mean norm. Tensors that are all zeros have no direction, and count in the norm only.
    """

    family: ClassVar[str] = "spherical"

    max_iter: int = setting(10, "steps at most", ge=0)
    tol: float = setting(1e-5, "length of a step that ends the search", gt=0)

    def survey(self, stack: Stack) -> list[float]:
        """Return the coefficient of each expert."""
        products = gram(stack, lambda base, experts: experts, lines(stack.shape, "tensor"))[0]
        norms = np.sqrt(np.diag(products))
        coefficients = np.zeros(len(norms))
        some = norms > 0
        if some.any():
            directions = self._mean(products[np.ix_(some, some)] / np.outer(norms[some], norms[some]))
            coefficients[some] = directions / norms[some] * norms.mean()
        return list(coefficients.tolist())

    def _mean(self, cosines: Numbers) -> Numbers:
        """Return the mean direction as coefficients of the directions whose `cosines` are given."""
        count = len(cosines)
        mean = np.full(count, 1 / count)
        length = math.sqrt(max(0.0, float(mean @ cosines @ mean)))
        mean = mean / length if length >= self.tol else np.eye(count)[0]
        for _ in range(self.max_iter):
            along = np.clip(cosines @ mean, -1, 1)
            angles = np.arccos(along)
            far = angles >= self.tol
            pull = np.where(far, angles / np.where(far, np.sin(angles), 1), 0) / count
            step = pull - (pull @ along) * mean
            length = math.sqrt(max(0.0, float(step @ cosines @ step)))
            if length < self.tol:
                break
            mean = math.cos(length) * mean + math.sin(length) / length * step
            mean /= math.sqrt(float(mean @ cosines @ mean))
        return mean

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        return weighted_sum(experts, facts)
