"""Less-forgetful learning: distillation of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lifelong.errors import InputError
from lifelong.learner import Batch, Learner, freeze
from lifelong.methods.method import Method, state
from lifelong.methods.teacher import Teacher
from lifelong.models.heads import MultiHead, SingleHead
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Task


@dataclass
class LFL(Method):
    """Keep the old layers of the head, and the features of the new inputs where the old network saw them.

    `CE + strength/2 * mean ||f(x) - f_old(x)||^2` (Jung et al. 2016, 1607.00122, eq. 2 and 3). After the first task the
    layers of the head that old tasks have are frozen, so features that stay mean answers that stay.
    """

    family: ClassVar[str] = "distillation"
    paper: ClassVar[str] = "1607.00122"
    freezes: ClassVar[bool] = True
    regression: ClassVar[bool] = True

    strength: float = setting(1e-2, "weight of the squared distance of features, at least 0", ge=0)
    teacher: Teacher = state(Teacher)

    def setup(self, learner: Learner) -> None:
        """Refuse a layer whose outputs for new classes would be frozen with those of the old ones.

        Raises:
            InputError: new classes share their layer with old ones.
        """
        if learner.scenario is Scenario.CLASS and isinstance(learner.model.head, SingleHead) and self.strength > 0:
            raise InputError("method lfl freezes the layers of old classes: choose head growing")

    def before_task(self, learner: Learner, task: Task) -> None:
        self.teacher.forget_copy()
        if self.strength > 0 and task.index > 0:
            head = learner.model.head
            old: list[nn.Module] = list(head.blocks[:-1]) if isinstance(head, MultiHead) else [head]
            for layer in old:
                freeze(learner, layer)

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        if not self.teacher.weights or self.strength == 0:
            return loss
        with torch.no_grad():
            goal = self.teacher.network(learner).features(batch.inputs, batch.task)
        return loss + self.strength / 2 * (batch.features - goal).square().sum(1).mean()

    def after_task(self, learner: Learner, task: Task) -> None:
        self.teacher.remember(learner)
