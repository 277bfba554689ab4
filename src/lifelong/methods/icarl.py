"""Incremental classifier and representation learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong.learner import Batch, Learner
from lifelong.memory import Buffer
from lifelong.methods.exemplars import check_capacity, renew, unit_features
from lifelong.methods.lwf_mc import binary_distillation
from lifelong.methods.method import Method, state
from lifelong.methods.rehearsal import stored
from lifelong.methods.teacher import Teacher
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Split, Task, joined


@dataclass
class ICaRL(Method):
    """Learn features from new samples and exemplars of old classes, and answer with the nearest mean of exemplars.

    Training descends binary cross-entropy with the old network's answers for old classes (Rebuffi et al. 2017,
    1611.07725, algorithm 3). After a task each class has `capacity / classes` exemplars: those of new classes by
    herding (algorithm 4), those of old ones cut in that order (algorithm 5). An answer is the class whose mean of
    normalised exemplar features is nearest (algorithm 1); until a task is over the network's own outputs answer.
    """

    family: ClassVar[str] = "rehearsal"
    paper: ClassVar[str] = "1611.07725"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.CLASS,)
    keeps_samples: ClassVar[bool] = True
    makes_loss: ClassVar[bool] = True

    capacity: int = setting(2000, "exemplars kept at most, shared evenly by the classes", ge=1)
    per_class: int | None = setting(None, "exemplars of each class, instead of a capacity", ge=1)
    temperature: float = setting(1.0, "softens the old network's answers, above 0; some comparisons have 2", gt=0)
    memory: Buffer = state(Buffer)
    teacher: Teacher = state(Teacher)
    old: int = state(int)
    means: Tensor = state(lambda: torch.empty(0, 0))

    def setup(self, learner: Learner) -> None:
        """Raise `InputError` where the buffer would hold no exemplar of some class."""
        if self.per_class is None:
            check_capacity(learner, self.capacity)

    def before_task(self, learner: Learner, task: Task) -> None:
        self.old, self.means = min(task.classes), torch.empty(0, 0)
        self.teacher.forget_copy()

    def data(self, learner: Learner, tasks: Sequence[Task]) -> Split | None:
        new = tasks[-1].train.ready(learner.device)
        if len(self.memory) == 0:
            return new
        return joined([(tasks[-1].index, new), (-1, stored(self.memory, new))], learner.device)

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        return binary_distillation(learner, self.teacher, self.old, batch, logits, self.temperature)

    def after_task(self, learner: Learner, task: Task) -> None:
        classes = max(task.classes) + 1
        ready = task.train.ready(learner.device)
        renew(self.memory, learner, task, ready, self.per_class or self.capacity // classes)
        self.teacher.remember(learner)
        kept = unit_features(learner, stored(self.memory, ready))
        groups = self.memory.groups.to(kept.device)
        self.means = F.normalize(torch.stack([kept[groups == label].mean(0) for label in range(classes)]), dim=1)

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        if len(self.means) == 0:
            return super().logits(learner, inputs, task)
        features = F.normalize(learner.model.features(inputs).float(), dim=1)
        return -torch.cdist(features, self.means)
