"""Gradient episodic memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lifelong import memory, tree
from lifelong.learner import Batch, Learner
from lifelong.memory import Buffer
from lifelong.methods import gradients
from lifelong.methods.method import Method, state, transient
from lifelong.settings import setting
from lifelong.streams.task import Task
from lifelong.tree import Params


@dataclass
class GEM(Method):
    """Change the gradient as little as keeps the loss on no old task's memory from rising.

    `min 1/2 ||g' - g||^2  s.t.  <g', g_k> >= 0` for the gradient g_k over the memory of every old task k (Lopez-Paz &
    Ranzato 2017, 1706.08840, eq. 8). Its dual, `min_v 1/2 ||G^T v + g||^2, v >= margin`, has as many unknowns as there
    are old tasks and is solved as non-negative least squares; then `g' = g + G^T v`. The margin pushes towards old
    tasks even where nothing is violated, as in the authors' code (which does nothing where no constraint is). Each
    g_k is a forward and backward pass over all of a memory, which is nearly all that a step costs.

    The memory of a task is its last `memories` samples. Heads of old tasks, which have a gradient of zero, move too
    where a constraint is violated.
    """

    family: ClassVar[str] = "constrained"
    paper: ClassVar[str] = "1706.08840"
    keeps_samples: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    single_pass: ClassVar[bool] = True
    regression: ClassVar[bool] = True

    memories: int = setting(256, "samples kept of each task", ge=1)
    margin: float = setting(0.5, "lower bound of the dual variables, at least 0", ge=0)
    memory: Buffer = state(Buffer)
    old: list[Batch] | None = transient(lambda: None)

    def before_task(self, learner: Learner, task: Task) -> None:
        """Close the memory of the last task: a place for `memories` more samples."""
        self.memory.capacity += self.memories
        self.old = None

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        if self.old is None:
            self.old = self._memories(learner, batch)
        if learner.clock.epoch == 0:
            groups = [learner.clock.task] * batch.new
            columns = {"inputs": batch.raw, "targets": batch.targets[: batch.new]}
            random = np.random.default_rng(0)  # a ring draws nothing
            self.memory.write(memory.ring(self.memories)(self.memory, groups, random), columns, groups)
            self.memory.note(groups)
        return batch

    def before_step(self, learner: Learner) -> None:
        if not self.old:
            return
        current = tree.all_gradients(learner.params)
        past = [gradients.over(learner, each) for each in self.old]
        products = inner_products(list(current), [current, *past])
        weights = dual(products[1:, 1:], products[0, 1:], self.margin)
        if weights is not None:
            for weight, each in zip(weights.tolist(), past, strict=True):
                torch._foreach_add_(list(current.values()), tree.leaves(each, current), alpha=weight)
            tree.attach(learner.params, current)

    def after_task(self, learner: Learner, task: Task) -> None:
        self.old = None

    def _memories(self, learner: Learner, batch: Batch) -> list[Batch]:
        """Return the memory of each task before this one that has any, ready for the network."""
        found = []
        for index in self.memory.groups[self.memory.groups < learner.clock.task].unique().tolist():
            rows = self.memory.rows((self.memory.groups == index).nonzero().flatten())
            found.append(Batch(batch.scaled(rows["inputs"]), rows["targets"], index))
        return found


def inner_products(names: Sequence[str], trees: Sequence[Params]) -> Tensor:
    """Return the inner product of each two of `trees` over the tensors `names`, `[trees, trees]` float64."""
    found = []
    for pieces in tree.blocks(names, *trees, together=len(trees)):
        for tensors in zip(*pieces, strict=True):
            rows = torch.stack([each.flatten() for each in tensors])
            found.append((rows @ rows.T).cpu().double())
    return torch.stack(found).sum(0)


def dual(gram: Tensor, inner: Tensor, margin: float) -> Tensor | None:
    """Return v of `min_v 1/2 v^T GG^T v + (G g)^T v, v >= margin`, or None where no constraint is violated.

    Args:
        gram: `G G^T`, `[tasks, tasks]` float64.
        inner: `G g`, `[tasks]` float64, the inner products of the gradient with those of the memories.
        margin: least value of v, at least 0.
    """
    if bool((inner >= 0).all()):
        return None
    # Imported here: it takes a third of a second, which other methods need not wait for.
    import scipy.linalg
    import scipy.optimize

    matrix, target = gram.cpu().numpy(), inner.cpu().numpy()
    # A ridge as small as rounding: gradients of old tasks may be nearly parallel, and Cholesky wants them apart.
    ridge = 1e-10 * max(float(np.trace(matrix)) / len(matrix), np.finfo(float).tiny)
    factor = np.linalg.cholesky(matrix + ridge * np.eye(len(matrix)))
    offset = scipy.linalg.solve_triangular(factor, target, lower=True) + factor.T @ np.full(len(matrix), margin)
    solution, _ = scipy.optimize.nnls(factor.T, -offset)
    return torch.from_numpy(solution + margin)
