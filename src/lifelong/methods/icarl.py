"""Incremental classifier and representation learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong.curvature.per_sample import evaluating
from lifelong.errors import InputError
from lifelong.learner import Batch, Learner
from lifelong.memory import Buffer
from lifelong.methods.lwf_mc import binary_distillation
from lifelong.methods.method import Method, state
from lifelong.methods.rehearsal import stored
from lifelong.methods.samples import BATCH
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

    capacity: int = setting(2000, "exemplars kept at most, shared evenly by the classes", ge=1)
    per_class: int | None = setting(None, "exemplars of each class, instead of a capacity", ge=1)
    memory: Buffer = state(Buffer)
    teacher: Teacher = state(Teacher)
    old: int = state(int)
    means: Tensor = state(lambda: torch.empty(0, 0))

    def setup(self, learner: Learner) -> None:
        """Raise `InputError` where the buffer would hold no exemplar of some class."""
        classes = sum(learner.planned_classes)
        if self.per_class is None and self.capacity < classes:
            raise InputError(
                f"capacity = {self.capacity} is less than the {classes} classes: give it at least {classes}"
            )

    def before_task(self, learner: Learner, task: Task) -> None:
        self.old, self.means = min(task.classes), torch.empty(0, 0)
        self.teacher.forget_copy()

    def data(self, learner: Learner, tasks: Sequence[Task]) -> Split | None:
        new = tasks[-1].train.ready(learner.device)
        if len(self.memory) == 0:
            return new
        return joined([(tasks[-1].index, new), (-1, stored(self.memory, new))], learner.device)

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        return binary_distillation(learner, self.teacher, self.old, batch, logits)

    def after_task(self, learner: Learner, task: Task) -> None:
        share = self.per_class or self.capacity // (max(task.classes) + 1)
        self._cut(share)
        ready = task.train.ready(learner.device)
        features = _features(learner, ready)
        for label in task.classes:
            own = (ready.targets == label).nonzero().flatten()
            self._keep(ready.take(own[herding(features[own], share)]), task.index, label)
        self.teacher.remember(learner)
        kept = _features(learner, stored(self.memory, ready))
        groups = self.memory.groups.to(kept.device)
        means = torch.stack([kept[groups == label].mean(0) for label in range(max(task.classes) + 1)])
        self.means = F.normalize(means, dim=1)

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        if len(self.means) == 0:
            return super().logits(learner, inputs, task)
        features = F.normalize(learner.model.features(inputs).float(), dim=1)
        return -torch.cdist(features, self.means)

    def _cut(self, share: int) -> None:
        """Keep the first `share` exemplars of each class, the ones that herding took first."""
        groups = self.memory.groups
        if len(groups):
            chosen = [(groups == label).nonzero().flatten()[:share] for label in groups.unique().tolist()]
            self.memory.keep(torch.cat(chosen))

    def _keep(self, taken: Split, task: int, label: int) -> None:
        rows = list(range(len(self.memory), len(self.memory) + len(taken)))
        columns = {
            "inputs": taken.inputs,
            "targets": taken.targets,
            "tasks": torch.full_like(taken.targets, task),
        }
        self.memory.capacity = max(self.memory.capacity, rows[-1] + 1)
        self.memory.write(rows, columns, [label] * len(rows))


def herding(features: Tensor, count: int) -> Tensor:
    """Return the indices, `[count]`, of the samples whose running mean stays closest to the mean of all.

    `p_k = argmin_x || mu - 1/k (phi(x) + sum_{j<k} phi(p_j)) ||`, without repetition (1611.07725, algorithm 4).

    Args:
        features: `[samples, width]`, of length 1 each.
        count: how many to choose; all where there are fewer samples.
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    squares = features.square().sum(1)
    chosen: list[int] = []
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    for number in range(1, min(count, len(features)) + 1):
        # The squared distance, times k^2 and without what all samples share.
        distance = squares - 2 * features @ (number * mean - total)
        best = int(distance.masked_fill(taken, torch.inf).argmin())
        chosen.append(best)
        taken[best] = True
        total = total + features[best]
    return torch.tensor(chosen, device=features.device)


@torch.no_grad()
def _features(learner: Learner, split: Split) -> Tensor:
    """Return features of length 1, `[samples, width]`, of a `ready` split."""
    with evaluating(learner.model), learner.precision():
        found = [learner.model.features(inputs) for inputs, _ in split.batches(BATCH)]
    return F.normalize(torch.cat(found).float(), dim=1)
