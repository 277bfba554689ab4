"""Answers by the nearest class mean, in the features of weights that change after each task."""

from __future__ import annotations

from collections.abc import Callable
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
from lifelong.streams.task import Scenario, Split, Task

# Cosines of mean features differ by some hundredths; with this they make differences of a nat or two.
_SCALE = 30.0


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
        ready = task.train.ready(learner.device)
        with torch.no_grad(), evaluating(learner.model), learner.precision():
            if len(self.memory):
                split, owner = stored(self.memory, ready), self.memory.columns["tasks"][: len(self.memory)]
                for index, old in self.rows.items():
                    own = split.take((owner == int(index)).nonzero().flatten())
                    self.rows[index] = _directions(learner, own, features, len(old))
            self.rows[str(task.index)] = _directions(learner, ready, features, len(task.classes))
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
        return _SCALE * F.normalize(features.float(), dim=1) @ F.normalize(means, dim=1).T


def _directions(learner: Learner, split: Split, features: Callable[[Tensor], Tensor], classes: int) -> Tensor:
    """Return the mean direction `[classes, width]` of each class of one task, whose labels follow one another."""
    total, first = torch.empty(0), int(split.targets.min())
    for inputs, targets in split.batches(min(samples.BATCH, learner.largest_batch)):
        found = F.normalize(features(inputs).float(), dim=1)
        total = total if len(total) else found.new_zeros(classes, found.shape[1])
        total.index_add_(0, targets - first, found)
    return F.normalize(total, dim=1)
