"""A merged task vector that disturbs no task's own directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lifelong.merging.linear_algebra import nearest_minimizer
from lifelong.merging.rule import Array, Rule, Site, namespace
from lifelong.merging.rules.regmean import mean
from lifelong.merging.rules.task_arithmetic import task_vectors
from lifelong.settings import setting


@dataclass(frozen=True)
class WUDI(Rule):
    """Minimize the interference of the merged task vector with each task's: `theta_0 + tau`, for matrices.

    Cheng et al. 2025, 2503.08099: tau minimizes `sum_t ||(tau - tau_t) tau_t^T||^2 / ||tau_t||^2`, as the rows of a
    linear layer's task vector nearly span the inputs of its task. They take 300 steps of Adam from `sum_t tau_t`
    (`solver = adam`); `exact` takes the closest minimizer to it, which Adam does not reach in as few steps. Tensors
    that are no matrices: the mean of the task vectors.
    """

    family: ClassVar[str] = "task vectors"
    paper: ClassVar[str] = "2503.08099"
    needs_base: ClassVar[bool] = True
    blockwise: ClassVar[bool] = False

    solver: Literal["adam", "exact"] = setting("adam", "adam, as the paper, or exact")
    steps: int = setting(300, "of Adam", ge=0)
    learning_rate: float = setting(1e-5, "of Adam; suits task vectors of numbers about 1e-3", gt=0)

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        changes = task_vectors(base, experts)
        if changes[0].ndim != 2:
            return base + mean(changes)
        start, gram, product = _quadratic(changes)
        if self.solver == "exact":
            return base + nearest_minimizer(start, gram, product)
        return base + adam(start, gram, product, self.steps, self.learning_rate)


def _quadratic(changes: list[Array]) -> tuple[Array, Array, Array]:
    """Return the start `sum_t tau_t`, and A and B of the gradient `2 (tau A - B)`."""
    xp = namespace(changes[0])
    start = xp.zeros_like(changes[0])
    gram = xp.zeros((start.shape[1],) * 2, dtype=start.dtype, device=start.device)
    product = xp.zeros_like(start)
    for each in changes:
        start += each
        square = float(xp.sum(each * each, dtype=xp.float64))
        if square > 0:
            one = (each.T @ each) / square
            gram += one
            product += each @ one
    return start, gram, product


def adam(start: Array, gram: Array, product: Array, steps: int, learning_rate: float) -> Array:
    """Return where Adam (Kingma & Ba 2015, 1412.6980, its constants) takes `start` along the gradient `2 (x A - B)`.

    One matrix product a step, however many tasks the sums A and B are of.
    """
    xp = namespace(start)
    first, second = xp.zeros_like(start), xp.zeros_like(start)
    for step in range(1, steps + 1):
        gradient = 2 * (start @ gram - product)
        first += (gradient - first) * 0.1
        gradient *= gradient
        second += (gradient - second) * 0.001
        size = xp.sqrt(second / (1 - 0.999**step))
        size += 1e-8
        start -= (learning_rate / (1 - 0.9**step)) * first / size
    return start
