"""Few-shot tasks as tensors: N classes, K support samples and Q queries of each, for a whole batch of tasks at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong import randomness
from lifelong.data import Dataset
from lifelong.data.dataset import need_classes
from lifelong.errors import InputError
from lifelong.streams import alike


@dataclass(frozen=True)
class Episodes:
    """A batch of tasks.

    Args:
        support: `[tasks, support samples, ...]`, what a task is learned from.
        support_targets: `[tasks, support samples]` int64 labels within the task, or `[tasks, support samples,
            outputs]`.
        query: `[tasks, queries, ...]`, what it is judged by.
        query_targets: as `support_targets`.
        classes: `[tasks, ways]` int64, each label's class among all of the source, where there are classes.
        first: index of the first task among those of the batch that they were cut from.
    """

    support: Tensor
    support_targets: Tensor
    query: Tensor
    query_targets: Tensor
    classes: Tensor | None = None
    first: int = 0

    def __len__(self) -> int:
        return len(self.support)

    def chunks(self, size: int) -> Iterator[Episodes]:
        """Yield the tasks `size` at a time, in order."""
        for start in range(0, len(self), size):
            here = slice(start, start + size)
            classes = None if self.classes is None else self.classes[here]
            yield Episodes(
                self.support[here],
                self.support_targets[here],
                self.query[here],
                self.query_targets[here],
                classes,
                self.first + start,
            )


# A network may do otherwise for a batch than for a few samples, and a trial should not take long.
TRIED = 32

# (outputs [tasks, samples, outputs], targets) -> [tasks], the mean over each task's samples.
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each task's mean cross-entropy `[tasks]` of logits `[tasks, samples, classes]`."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).mean(1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each task's mean squared error `[tasks]`."""
    return (outputs - targets).square().flatten(1).mean(1)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each task's share of right answers `[tasks]`."""
    return (outputs.argmax(2) == targets).float().mean(1)


class Source(Protocol):
    """Where tasks come from, and what a right answer is."""

    @property
    def loss(self) -> Loss:
        """What adaptation descends."""
        ...

    @property
    def score(self) -> Loss:
        """What is reported: accuracy, or an error."""
        ...

    @property
    def outputs(self) -> int:
        """Numbers that a network answers with."""
        ...

    def sample(self) -> Tensor:
        """Return inputs to try a network with, as many as a task has, but `TRIED` at most."""
        ...

    def draw(self, tasks: int, generator: torch.Generator) -> Episodes:
        """Return so many tasks, drawn by `generator`, which is the CPU's."""
        ...


@dataclass(frozen=True)
class ClassPool:
    """Samples by class.

    Args:
        inputs: `[samples, ...]`, those of a class side by side.
        starts: `[classes]` int64, where each class begins.
        counts: `[classes]` int64, how many samples it has.
        names: of the classes.
    """

    inputs: Tensor
    starts: Tensor
    counts: Tensor
    names: tuple[str, ...]

    def to(self, device: torch.device) -> ClassPool:
        """Return the pool with its samples on `device`; the indices are drawn on the CPU, the same for every device."""
        return ClassPool(self.inputs.to(device), self.starts, self.counts, self.names)


def class_pool(dataset: Dataset) -> ClassPool:
    """Return all samples of `dataset` by class, training and test samples alike: tasks differ in their classes.

    Raises:
        InputError: its targets are numbers to predict.
    """
    need_classes(dataset, "meta-learning")
    inputs = torch.cat([dataset.train.inputs, dataset.test.inputs])
    targets = torch.cat([dataset.train.targets, dataset.test.targets])
    counts = torch.bincount(targets, minlength=len(dataset.classes))
    order = torch.argsort(targets, stable=True)
    return ClassPool(inputs[order], counts.cumsum(0) - counts, counts, dataset.classes)


def domain_pool(datasets: Sequence[Dataset]) -> ClassPool:
    """Return the classes of each of `datasets`, one data set after another: `FewShot` draws domains from it.

    Raises:
        InputError: data sets whose samples differ in shape, or that have other classes.
    """
    first, *others = alike(datasets)
    for each in others:
        if each.classes != first.classes:
            raise InputError(
                f"{each.name} has the classes {', '.join(each.classes)}, and {first.name} {', '.join(first.classes)}: "
                "domains share theirs, in the same order"
            )
    pools = [class_pool(each) for each in (first, *others)]
    counts = torch.cat([each.counts for each in pools])
    names = tuple(f"{each.name}/{label}" for each in (first, *others) for label in each.classes)
    return ClassPool(torch.cat([each.inputs for each in pools]), counts.cumsum(0) - counts, counts, names)


def divide(pool: ClassPool, sizes: Sequence[int], seed: int = 0) -> list[ClassPool]:
    """Return pools of `sizes` classes each that share none, drawn by `seed`.

    Raises:
        InputError: more classes asked for than there are.
    """
    if sum(sizes) > len(pool.counts):
        raise InputError(f"{' + '.join(map(str, sizes))} classes are asked for, and the data has {len(pool.counts)}")
    order = torch.randperm(len(pool.counts), generator=randomness.generator(seed, "class split"))
    return [only(pool, each) for each in order[: sum(sizes)].split(list(sizes))]


def only(pool: ClassPool, classes: Tensor) -> ClassPool:
    """Return the pool of `classes` (int64), in that order."""
    parts = [pool.inputs[s : s + n] for s, n in zip(pool.starts[classes], pool.counts[classes], strict=True)]
    counts = pool.counts[classes]
    inputs = torch.cat(parts) if parts else pool.inputs[:0]
    return ClassPool(inputs, counts.cumsum(0) - counts, counts, tuple(pool.names[int(each)] for each in classes))


def turned(pool: ClassPool) -> ClassPool:
    """Return `pool` with each class four times: as it is, and turned by 90, 180 and 270 degrees as classes of its own.

    Raises:
        InputError: samples that are no square pictures.
    """
    shape = pool.inputs.shape[1:]
    if len(shape) != 3 or shape[1] != shape[2]:
        raise InputError(f"rotations are for square pictures, and the data has samples of shape {tuple(shape)}")
    inputs = torch.cat([pool.inputs.rot90(quarters, (2, 3)) for quarters in range(4)])
    starts = torch.cat([pool.starts + quarters * len(pool.inputs) for quarters in range(4)])
    names = tuple(f"{name} {90 * quarters}°" if quarters else name for quarters in range(4) for name in pool.names)
    return ClassPool(inputs, starts, pool.counts.repeat(4), names)


@dataclass(frozen=True)
class FewShot:
    """Tasks of telling `ways` classes apart after `shots` samples of each, judged by `queries` more of each.

    Classes, samples and the label that a class has in a task are drawn anew for every task. Of `domains` a task is one,
    with all of its classes, and a label means the same in every task.

    Args:
        pool: where they are drawn from.
        ways: classes of a task; of domains those of each.
        shots: support samples a class.
        queries: query samples a class; the number belongs to the protocol where statistics are transductive.
        inverted: pictures are given as 1 - brightness, so that ink on paper is 1 on 0, as borders of zeros are.
        domains: `pool` is of domains, `ways` classes of each side by side.
    """

    pool: ClassPool
    ways: int = 5
    shots: int = 1
    queries: int = 1
    inverted: bool = False
    domains: bool = False

    loss = staticmethod(cross_entropy)
    score = staticmethod(accuracy)

    def __post_init__(self) -> None:
        classes, counts, need = len(self.pool.counts), self.pool.counts, self.shots + self.queries
        if self.ways > classes:
            raise InputError(f"ways = {self.ways} is more than the {classes} classes that tasks are drawn from")
        scarce = (counts < need).nonzero().flatten().tolist()
        if scarce:
            more = f" (too few also in {len(scarce) - 1} others)" if len(scarce) > 1 else ""
            raise InputError(
                f"class {self.pool.names[scarce[0]]} has {int(counts[scarce[0]])} samples, and shots + queries = "
                f"{self.shots} + {self.queries} are needed of each{more}"
            )

    @property
    def outputs(self) -> int:
        return self.ways

    @property
    def labels(self) -> int:
        """Classes that there are over all tasks, which those of all domains share."""
        return self.ways if self.domains else len(self.pool.counts)

    def sample(self) -> Tensor:
        return self._ready(self.pool.inputs[: min(TRIED, self.ways * (self.shots + self.queries))])

    def draw(self, tasks: int, generator: torch.Generator) -> Episodes:
        ways, shots = self.ways, self.shots
        classes = self._classes(tasks, generator)
        counts = self.pool.counts[classes].flatten()
        chosen = distinct(counts, shots + self.queries, generator).view(tasks, ways, -1)
        chosen += self.pool.starts[classes].unsqueeze(2)
        device = self.pool.inputs.device
        support, query = chosen[:, :, :shots], chosen[:, :, shots:]
        return Episodes(
            self._gather(support),
            _labels(tasks, ways, shots).to(device),
            self._gather(query),
            _labels(tasks, ways, self.queries).to(device),
            (classes % self.labels).to(device),
        )

    def _classes(self, tasks: int, generator: torch.Generator) -> Tensor:
        """Return the classes of each task, `[tasks, ways]`, in the order of their labels."""
        if not self.domains:
            return distinct(torch.full((tasks,), len(self.pool.counts)), self.ways, generator)
        domain = torch.randint(len(self.pool.counts) // self.ways, (tasks, 1), generator=generator)
        return domain * self.ways + torch.arange(self.ways)

    def _gather(self, indices: Tensor) -> Tensor:
        device = self.pool.inputs.device
        found = self.pool.inputs.index_select(0, indices.flatten().to(device))
        return self._ready(found).view(len(indices), -1, *found.shape[1:])

    def _ready(self, inputs: Tensor) -> Tensor:
        if inputs.dtype == torch.uint8:
            inputs = inputs.float().div_(255)
        return 1 - inputs if self.inverted else inputs


def distinct(counts: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return, for each of `counts` `[rows]`, `size` different whole numbers below it in random order, `[rows, size]`.

    Floyd's algorithm on all rows at once (Bentley & Floyd 1987): its cost does not hang on the counts, which are
    thousands of samples where a few are drawn.
    """
    chosen = torch.full((len(counts), size), -1)
    for place in range(size):
        last = counts - size + place
        drawn = (torch.rand(len(counts), generator=generator, dtype=torch.float64) * (last + 1)).long()
        taken = (chosen[:, :place] == drawn.unsqueeze(1)).any(1)
        chosen[:, place] = torch.where(taken, last, drawn)
    # A uniform set so far, whose greatest members tend to stand last.
    order = torch.rand(len(counts), size, generator=generator).argsort(1)
    return chosen.gather(1, order)


def _labels(tasks: int, ways: int, each: int) -> Tensor:
    return torch.arange(ways).repeat_interleave(each).expand(tasks, -1)
