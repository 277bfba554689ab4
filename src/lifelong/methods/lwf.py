"""Learning without forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong.learner import Batch, Learner
from lifelong.methods import structure
from lifelong.methods.method import Method, state
from lifelong.methods.teacher import Teacher
from lifelong.models.heads import MultiHead, SingleHead
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Task


@dataclass
class LwF(Method):
    """Hold the answers on the *new* inputs to those of the network before the task.

    `loss = r * CE + (1 - r) * T^2 * KL(p_old^(1/T) || p^(1/T))`, averaged over the heads of old tasks where each has
    its own (Li & Hoiem 2016, 1606.09282, eq. 3; the T^2 of Hinton et al. 2015 keeps the gradients' size). By default
    r = 1/t at the t-th task. In the class-incremental scenario the old network gives its old classes all the mass and
    the new ones none, as van de Ven & Tolias 2019 (1904.07734) have it, so that new classes do not outshout old ones. A
    head that has all outputs from the start, none masked, has answered with all of them, and that is held then.

    Where a task predicts a number its old and new answers are Gaussians of deviation 1, whose KL is
    `1/2 (f_old - f)^2`.

    The paper trains the new outputs alone at first, `warm_up`, and says nothing of how long.
    """

    family: ClassVar[str] = "distillation"
    paper: ClassVar[str] = "1606.09282"
    regression: ClassVar[bool] = True

    strength: float = setting(1.0, "multiplies the distillation term, at least 0", ge=0)
    new_share: float | None = setting(None, "weight r of the new task's loss, 0 to 1; 1/t by default", ge=0, le=1)
    temperature: float = setting(2.0, "softens both distributions, above 0", gt=0)
    warm_up: float = setting(
        0.0, "share of a task's steps, 0 to 1, in which its new outputs learn alone; not in the first task", ge=0, le=1
    )
    teacher: Teacher = state(Teacher)
    outputs: list[int] = state(list)

    def before_task(self, learner: Learner, task: Task) -> None:
        self.outputs.append(len(task.classes))
        self.teacher.forget_copy()

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        if self._warms_up(learner):
            structure.hold_statistics(learner.model.trunk)
        return batch

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        if not self.teacher.weights or self.strength == 0:
            return loss
        share = 1 / len(self.outputs) if self.new_share is None else self.new_share
        return share * loss + (1 - share) * self.strength * self._distillation(learner, batch, logits)

    def before_step(self, learner: Learner) -> None:
        """Let nothing but new outputs move while they warm up."""
        if self._warms_up(learner):
            for name, each in learner.params.items():
                if not name.startswith(f"head.blocks.{learner.clock.task}."):
                    each.grad = None

    def after_task(self, learner: Learner, task: Task) -> None:
        self.teacher.remember(learner)

    def _warms_up(self, learner: Learner) -> bool:
        begun = isinstance(learner.model.head, MultiHead) and bool(self.teacher.weights)
        return begun and learner.clock.step < self.warm_up * learner.clock.steps

    def _distillation(self, learner: Learner, batch: Batch, logits: Tensor) -> Tensor:
        teacher, numbers = self.teacher.network(learner), batch.targets.is_floating_point()
        if learner.scenario is Scenario.TASK and isinstance(learner.model.head, MultiHead):
            tasks = range(len(self.outputs) - 1)
            students = learner.model.answers(batch.inputs, tasks, batch.features)
            with torch.no_grad():
                targets = teacher.answers(batch.inputs, tasks)
        else:
            old = self._old_outputs(learner)
            students = [logits]
            with torch.no_grad():
                targets = [teacher(batch.inputs, batch.task)[:, :old]]
        terms = [self._divergence(student, target, numbers) for student, target in zip(students, targets, strict=True)]
        return torch.stack(terms).mean()

    def _old_outputs(self, learner: Learner) -> int | None:
        """Return how many outputs the old network answered with, or None: all."""
        head = learner.model.head
        if learner.scenario is not Scenario.CLASS or (isinstance(head, SingleHead) and not head.mask_unseen):
            return None
        return sum(self.outputs[:-1])

    def _divergence(self, student: Tensor, target: Tensor, numbers: bool) -> Tensor:
        """Mean over the batch of `T^2 * KL(target || student)` for logits `[batch, outputs]`, fewer in the target.

        Where `numbers` are predicted too, one output is one of them: `KL = 1/2 (old - new)^2`, and there is no T.
        """
        if numbers and target.shape[1] == 1:
            return F.mse_loss(student, target) / 2
        warm, cold = F.log_softmax(student / self.temperature, 1), F.log_softmax(target / self.temperature, 1)
        present = warm[:, : cold.shape[1]]
        return F.kl_div(present, cold, log_target=True, reduction="batchmean") * self.temperature**2
