"""Between the base and the average, as far as the angle between the experts says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lifelong.merging.gram import Lines, cosine, gram, lines, spread
from lifelong.merging.rule import Array, Rule, Site, Stack
from lifelong.merging.rules.linear import weighted_sum
from lifelong.merging.rules.task_arithmetic import task_vectors
from lifelong.settings import setting

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ModelStock(Rule):
    """Go from the base towards the average of the experts: `theta_0 + s (1/T) sum_t tau_t`.

    Jang et al. 2024, 2403.19522: `s = T c / (1 + (T - 1) c)`, c the cosine of the angle between task vectors; of more
    than two it is, as in mergekit, the mean over pairs. A task vector that is all zeros has the cosine 0 to all others.
    mergekit divides by at least 1e-6 instead of the product of two norms, which shrinks c in tensors that hardly moved.
    """

    family: ClassVar[str] = "task vectors"
    paper: ClassVar[str] = "2403.19522"
    needs_base: ClassVar[bool] = True
    least: ClassVar[int] = 2

    filter_wise: bool = setting(False, "an angle for each vector along the last axis instead of each tensor")

    def survey(self, stack: Stack) -> tuple[Numbers, Lines]:
        """Return the coefficient of the sum of the task vectors, `[lines, 1]`, and what it is for."""
        over = lines(stack.shape, "rows" if self.filter_wise else "tensor")
        products = gram(stack, task_vectors, over)
        count = len(stack.experts)
        mean = np.mean([cosine(products, s, t) for s in range(count) for t in range(s)], axis=0)
        divisor = 1 + (count - 1) * mean
        # Zero where the task vectors cancel, and then it does not matter how far to go.
        share = np.where(divisor > 1e-6, count * mean / np.where(divisor > 1e-6, divisor, 1), 0)
        return share[:, None] / count, over

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        coefficients, over = facts
        total = weighted_sum(task_vectors(base, experts), [1.0] * len(experts))
        total *= spread(coefficients, over, site, total)[0]
        total += base
        return total
