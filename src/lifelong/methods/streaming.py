"""Classifiers that are solved from sums over the features of a frozen trunk, in one pass and in any order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong.curvature.per_sample import evaluating
from lifelong.learner import Learner, freeze
from lifelong.methods import samples
from lifelong.methods.method import Method, state, transient
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Split, Task


def exact(device: torch.device) -> torch.dtype:
    """Return the dtype of sums on `device`: float64, in which the order of the samples leaves no trace to speak of."""
    return torch.float32 if device.type == "mps" else torch.float64  # which Apple's GPUs do not have


def _nothing(*shape: int) -> Any:
    return field(default_factory=lambda: torch.zeros(shape, dtype=torch.float64))


@dataclass
class Sums:
    """What the classifiers keep of the samples: sums, so neither their order nor their batches matter.

    Args:
        count: `[classes]`, how many samples of each class.
        total: `[classes, width]`, the sum of their features.
        gram: `[width, width]`, the sum over all samples of `z z^T`; empty where nobody asks for it.
    """

    count: Tensor = _nothing(0)
    total: Tensor = _nothing(0, 0)
    gram: Tensor = _nothing(0, 0)

    def add(self, features: Tensor, labels: Tensor, classes: int, *, gram: bool = True) -> None:
        """Take in samples.

        Args:
            features: `[batch, width]` in the dtype of `exact`; the batch may be empty.
            labels: `[batch]` int64.
            classes: how many there are so far, at least.
            gram: add to the Gram matrix too.
        """
        width = features.shape[1]
        classes = max(classes, len(self.count))
        marks = F.one_hot(labels, classes).to(features)
        count, total = self.count.to(features), self.total.to(features)
        self.count = F.pad(count, (0, classes - len(count))) + marks.sum(0)
        self.total = F.pad(total, (0, width - total.shape[1], 0, classes - len(total))) + marks.T @ features
        if gram:
            if len(self.gram) == 0:
                self.gram = features.new_zeros(width, width)
            self.gram.addmm_(features.T, features)

    def means(self) -> Tensor:
        """Return the mean features `[classes, width]` of each class, 0 for one without samples."""
        return self.total / self.count.clamp_min(1).unsqueeze(1)


@dataclass
class StreamingClassifier(Method, ABC):
    """A linear classifier over features, solved from sums over all samples so far; no old sample is kept.

    With `learn_first` the network learns the first task by gradient and its trunk is frozen then; without, no step is
    made at all. Until the sums hold samples (of the task, where the scenario tells it) the network's own head answers.
    The samples of a stage are taken in when it ends, but where it ends makes no difference to what comes of them all.

    Task-incremental, an answer is over the task's classes (means, covariance and ridge still use all samples);
    domain-incremental, all tasks share one set of classes; class-incremental, it is over all classes seen so far.
    """

    family: ClassVar[str] = "streaming"
    boundaries_unless: ClassVar[Mapping[str, Any]] = {"learn_first": False}
    single_pass: ClassVar[bool] = True
    alone: ClassVar[str] = "its classifier is solved and not trained, over a trunk that stays"

    learn_first: bool = setting(
        True, "the network learns the first task by gradient, then its trunk is frozen; false for pretrained ones"
    )
    sizes: list[int] = state(list)
    sums: Sums = state(Sums)
    linear: tuple[Tensor, Tensor] | None = transient(lambda: None)

    @abstractmethod
    def solve(self) -> tuple[Tensor, Tensor]:
        """Return the weight `[classes, width]` and the bias `[classes]` that the sums ask for."""

    def embed(self, learner: Learner, features: Tensor) -> Tensor:
        """Return what is summed and answered from, `[batch, width]` in the dtype of `exact`, for `features`."""
        return features.to(exact(features.device))

    def collect(self, inputs: Tensor, embedded: Tensor, labels: Tensor, classes: int) -> None:
        """Add a batch to the sums; the raw `inputs` `[batch, ...]` are there to be told apart by, not to be kept."""
        self.sums.add(embedded, labels, classes)

    def observe(self, learner: Learner, inputs: Tensor, labels: Tensor) -> None:
        """Take in a batch, of any size and at any time.

        Args:
            inputs: `[batch, ...]` as the network takes them.
            labels: `[batch]` int64; task-incremental, numbered on from task to task.
        """
        with torch.no_grad(), evaluating(learner.model):
            embedded = self._embedded(learner, inputs)
            self.collect(inputs, embedded, labels, int(labels.max()) + 1)
        self.linear = None

    def before_task(self, learner: Learner, task: Task) -> None:
        if task.index > 0 or not self.learn_first:
            freeze(learner, learner.model.trunk)

    def data(self, learner: Learner, tasks: Sequence[Task]) -> Split | None:
        return super().data(learner, tasks) if self.learn_first and len(tasks) == 1 else None

    def after_task(self, learner: Learner, task: Task) -> None:
        start = sum(self.sizes) if learner.scenario is Scenario.TASK else 0
        self.sizes.append(len(task.classes))
        for inputs, targets in samples.of_task(learner, task, None):
            self.observe(learner, inputs, targets + start)
        self._solved()

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        told = learner.scenario is Scenario.TASK
        if len(self.sums.count) == 0 or (told and task >= len(self.sizes)):
            return super().logits(learner, inputs, task)
        weight, bias = self._solved()
        if told:
            start = sum(self.sizes[:task])
            end = start + self.sizes[task]
            weight, bias = weight[start:end], bias[start:end]
        return F.linear(self._embedded(learner, inputs), weight, bias)

    def _solved(self) -> tuple[Tensor, Tensor]:
        if self.linear is None:
            # Kept for later calls, which need not be in inference mode as this one may be.
            with torch.inference_mode(False), torch.no_grad():
                weight, bias = self.solve()
                self.linear = weight, bias.masked_fill(self.sums.count == 0, -torch.inf)
        return self.linear

    def _embedded(self, learner: Learner, inputs: Tensor) -> Tensor:
        with learner.precision():
            features = learner.model.features(inputs)
        return self.embed(learner, features)
