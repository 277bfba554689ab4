"""Learning without forgetting for many classes: binary distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong.learner import Batch, Learner
from lifelong.methods.method import Method, state
from lifelong.methods.teacher import Teacher
from lifelong.streams.task import Scenario, Task


@dataclass
class LwFMC(Method):
    """Answer each class with yes or no; for old classes the old network says what is right.

    `sum_new BCE(y) + sum_old BCE(sigmoid of the old network)` (the control of Rebuffi et al. 2017, 1611.07725, section
    4.1: iCaRL without exemplars).
    """

    family: ClassVar[str] = "distillation"
    paper: ClassVar[str] = "1611.07725"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.CLASS,)
    makes_loss: ClassVar[bool] = True

    teacher: Teacher = state(Teacher)
    old: int = state(int)

    def before_task(self, learner: Learner, task: Task) -> None:
        self.old = min(task.classes)
        self.teacher.forget_copy()

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        return binary_distillation(learner, self.teacher, self.old, batch, logits)

    def after_task(self, learner: Learner, task: Task) -> None:
        self.teacher.remember(learner)


def binary_distillation(
    learner: Learner, teacher: Teacher, old: int, batch: Batch, logits: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return the binary cross-entropy, summed over classes and averaged over the batch (1611.07725, algorithm 3).

    Args:
        teacher: says what is right for the first `old` classes, once it has learned.
        old: the number of classes of earlier tasks.
        logits: `[batch, classes]`.
        temperature: what the teacher's logits are divided by.
    """
    goal = F.one_hot(batch.targets, logits.shape[1]).to(logits.dtype)
    if old and teacher.weights:
        with torch.no_grad():
            answers = teacher.network(learner)(batch.inputs, batch.task)[:, :old]
            goal[:, :old] = (answers / temperature).sigmoid()
    return F.binary_cross_entropy_with_logits(logits, goal, reduction="sum") / len(logits)
