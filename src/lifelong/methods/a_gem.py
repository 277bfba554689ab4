"""Averaged gradient episodic memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lifelong import tree
from lifelong.learner import Batch, Learner
from lifelong.methods import gradients
from lifelong.methods.method import transient
from lifelong.methods.rehearsal import Rehearsal, only
from lifelong.tree import Params


@dataclass
class AGEM(Rehearsal):
    """Take from the gradient what would raise the loss on a random batch of the buffer.

    `g <- g - (g . r / r . r) r` where `g . r < 0`, with r the gradient of the mean cross-entropy over samples drawn
    from the buffer of all old tasks (Chaudhry et al. 2019, 1812.00420, eq. 11). The paper's reference batch has 256
    samples (`replay_batch`), its buffer 25 of each class of each task (`per_class`). Where the stream does not tell
    where a task ends, the batch is of all samples in the buffer.

    It keeps the loss on old samples from rising, to first order, and does not make it fall. Class-incremental, outputs
    that come with their task raise it within the first steps, and a short training does not make up for that: give the
    head all outputs from the start (`head: single`, `mask_unseen: false`), more steps, or a smaller rate.
    """

    family: ClassVar[str] = "constrained"
    paper: ClassVar[str] = "1812.00420"
    single_pass: ClassVar[bool] = True
    regression: ClassVar[bool] = True

    reference: Batch | None = transient(lambda: None)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        rows = self.draw(learner, batch)
        self.reference = None
        if rows:
            self.reference = only(batch, rows, learner.scenario)
        self.remember(learner, batch)
        return batch

    def before_step(self, learner: Learner) -> None:
        if self.reference is not None:
            project(learner.params, gradients.over(learner, self.reference))

    def drawn_from(self, learner: Learner) -> Tensor | None:
        return self.old(learner)


def project(params: Params, reference: Params) -> Tensor:
    """Make the gradient of `params` orthogonal to `reference`, in place, where it points against it.

    Parameters without a gradient, such as the heads of other tasks, have one of zero.

    Returns:
        The inner product of the two before that, a 0-d tensor.
    """
    current = tree.all_gradients(params)
    inner = tree.dot(current, reference)
    if inner < 0:
        length = tree.dot(reference, reference)
        torch._foreach_add_(tree.leaves(current, reference), list(reference.values()), alpha=-float(inner / length))
        tree.attach(params, current)
    return inner
