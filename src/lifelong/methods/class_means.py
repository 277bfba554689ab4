"""Answers by the nearest class mean, in the features of weights that change after each task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong import randomness
from lifelong.curvature.per_sample import evaluating
from lifelong.learner import Learner
from lifelong.memory import Buffer
from lifelong.methods import samples
from lifelong.methods.rehearsal import stored
from lifelong.models.heads import CLASS_MEANS_SCALE, FixedBlock
from lifelong.streams.task import Scenario, Task


@dataclass
class ClassMeans:
    """Mean directions of the features of each class, task by task, and the samples that they are taken from anew.

    Args:
        rows: `[classes, width]` of length 1, by the index of the task.
        memory: exemplars of all tasks; without any, means stay what they were after their task.
    """

    rows: dict[str, Tensor] = field(default_factory=dict)
    memory: Buffer = field(default_factory=Buffer)

    def meet(self, learner: Learner, task: Task, features: Callable[[Tensor], Tensor], exemplars: int) -> None:
        """Take in the classes of `task` by all its samples, and those of old tasks anew by their exemplars.

        Args:
            learner: whose network is put in evaluation mode meanwhile.
            features: of a batch of inputs, `[batch, width]`, as answers will have them.
            exemplars: samples of each class of `task` to keep, drawn by the seed.
        """
        ready, size = task.train.ready(learner.device), min(samples.BATCH, learner.largest_batch)
        with torch.no_grad(), evaluating(learner.model), learner.precision():
            if len(self.memory):
                split, owner = stored(self.memory, ready), self.memory.columns["tasks"][: len(self.memory)]
                for index, old in self.rows.items():
                    own = split.take((owner == int(index)).nonzero().flatten())
                    first = int(own.targets.min())
                    self.rows[index] = mean_directions(own.batches(size), features, len(old), first)
            rows = mean_directions(ready.batches(size), features, len(task.classes), min(task.classes))
            self.rows[str(task.index)] = rows
        for label in task.classes if exemplars else ():
            found = (ready.targets == label).nonzero().flatten()
            drawn = torch.randperm(len(found), generator=randomness.generator(learner.seed, "means", task.index, label))
            taken = ready.take(found[drawn[:exemplars].to(found.device)])
            tasks = torch.full_like(taken.targets, task.index)
            self.memory.append({"inputs": taken.inputs, "targets": taken.targets, "tasks": tasks}, task.index)

    def logits(self, scenario: Scenario, features: Tensor, task: int) -> Tensor:
        """Return `30 cos(features, mean)`, `[batch, classes]`: of the classes of `task`, of those shared, or of all."""
        if scenario is Scenario.TASK:
            means = self.rows[str(task)]
        elif scenario is Scenario.CLASS:
            means = torch.cat(list(self.rows.values()))
        else:
            means = torch.stack(list(self.rows.values())).mean(0)
        logits: Tensor = FixedBlock(means, CLASS_MEANS_SCALE)(features.float())
        return logits


def mean_directions(
    batches: Iterable[tuple[Tensor, Tensor]], features: Callable[[Tensor], Tensor], classes: int, first: int
) -> Tensor:
    """Return the mean direction `[classes, width]`, of length 1, of the features of each class.

    Args:
        batches: inputs `[batch, ...]` and labels `[batch]`.
        features: `[batch, width]` of inputs.
        classes: how many there are.
        first: the least label; the others follow one another.
    """
    total = torch.empty(0)
    for inputs, labels in batches:
        directions = F.normalize(features(inputs).float(), dim=1)
        total = total if len(total) else directions.new_zeros(classes, directions.shape[1])
        total.index_add_(0, labels - first, directions)
    return F.normalize(total, dim=1)
