"""What is learned: samples in splits, splits in tasks, tasks in a stream, under a scenario."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Arrange = Callable[[Tensor], Tensor]


class Scenario(str, enum.Enum):
    """What is known at prediction time (van de Ven & Tolias 2019, 1904.07734)."""

    TASK = "task"  # the task of each sample is told
    DOMAIN = "domain"  # it is not told and not asked: all tasks share their labels
    CLASS = "class"  # it is not told: the label says the task as well


@dataclass(frozen=True)
class Split:
    """Labelled samples held as whole tensors.

    Args:
        inputs: `[samples, ...]`, uint8 (images, 0..255), floating point, or int64 (tokens).
        targets: `[samples]` int64, in the numbering of the head that answers for them; in a stream in which some task
            predicts a number all are floating point, labels as whole numbers.
        arrange: what the stream does to whole batches of inputs (a permutation, a rotation); keeps the dtype.
        mean: per-channel mean that `batch` subtracts, on the scale 0..1 for uint8 inputs, or None.
        std: per-channel standard deviation that `batch` divides by, or None.
        tasks: `[samples]` int64, the task of each sample where a split joins several, else None.
    """

    inputs: Tensor
    targets: Tensor
    arrange: Arrange | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    tasks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def nbytes(self) -> int:
        """Size of the samples and their labels."""
        return self.inputs.nbytes + self.targets.nbytes

    def take(self, indices: Tensor) -> Split:
        """Return the samples at `indices`, `[n]` int64."""
        tasks = None if self.tasks is None else self.tasks[indices]
        return replace(self, inputs=self.inputs[indices], targets=self.targets[indices], tasks=tasks)

    def ready(self, device: torch.device) -> Split:
        """Return the split on `device` with `arrange` done once for all of it, so that a batch is one gather."""
        inputs = self.inputs.to(device)
        optional = [None if each is None else each.to(device) for each in (self.mean, self.std, self.tasks)]
        return Split(
            inputs if self.arrange is None else self.arrange(inputs),
            self.targets.to(device),
            None,
            *optional,
        )

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return `(inputs, targets)` at `indices` of a `ready` split; uint8 inputs become float32 in 0..1."""
        return self.scaled(self.inputs.index_select(0, indices)), self.targets.index_select(0, indices)

    def batches(self, size: int, indices: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the samples (those at `indices`, or all) in order, `size` at a time, as `batch` gives them."""
        if indices is not None:
            for chunk in indices.split(size):
                yield self.batch(chunk)
            return
        for inputs, targets in zip(self.inputs.split(size), self.targets.split(size), strict=True):
            yield self.scaled(inputs), targets

    def scaled(self, inputs: Tensor) -> Tensor:
        """Return arranged `inputs` as a network takes them: uint8 scaled to 0..1, standardised where asked for."""
        if inputs.dtype == torch.uint8:
            inputs = inputs.float().mul_(1 / 255)
        if self.mean is not None and self.std is not None:
            inputs = (inputs - self.mean) / self.std
        return inputs


def joined(splits: Sequence[tuple[int, Split]], device: torch.device) -> Split:
    """Return the samples of several `(task index, split)` as one `ready` split that knows each sample's task."""
    ready = [(index, split.ready(device)) for index, split in splits]
    first = ready[0][1]
    return replace(
        first,
        inputs=torch.cat([split.inputs for _, split in ready]),
        targets=torch.cat([split.targets for _, split in ready]),
        tasks=torch.cat([torch.full_like(split.targets, index, dtype=torch.int64) for index, split in ready]),
    )


@dataclass(frozen=True)
class Task:
    """One thing to learn: train, validation and test samples that never mix.

    Args:
        index: position in the stream, from 0.
        name: what tables and charts call it.
        train, validation, test: the samples; validation may be empty.
        classes: the labels that the task brings, in the stream's numbering; the head of the task has so many outputs.
            Others may occur in its training samples where the stream has no boundaries. One output, 0, for a task that
            predicts a number.
        labels: what these are called, where that is known.
        scale: mean and deviation, where a number `y` is predicted: targets are `(y - mean) / deviation`. Else None.
    """

    index: int
    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[int, ...]
    labels: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None


@dataclass(frozen=True)
class Stream:
    """Tasks in the order in which they are learned.

    Args:
        name: the kind, such as `permuted`.
        data: the data set(s) it was made of.
        scenario: what is known at prediction time.
        tasks: the tasks; `tasks[k].index == k`.
        classes: names of all classes, in the stream's numbering.
        boundaries: a learner may know where a task ends. Where not, the tasks are but the stages after which accuracy
            is measured, and any class may occur in any of them.
        unseen: tasks that are never learned, and that accuracy is measured on before the first and after the last.
    """

    name: str
    data: str
    scenario: Scenario
    tasks: tuple[Task, ...]
    classes: tuple[str, ...] = field(repr=False)
    boundaries: bool = True
    unseen: tuple[Task, ...] = ()

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one arranged sample, without the batch dimension."""
        split = self.tasks[0].train
        return tuple(split.take(torch.arange(1)).ready(torch.device("cpu")).inputs.shape[1:])

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype of stored inputs: uint8, floating point or int64."""
        return self.tasks[0].train.inputs.dtype
