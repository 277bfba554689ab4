"""A few samples of each task, by which merges are chosen or learned."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lifelong import losses, randomness
from lifelong.curvature.per_sample import evaluating
from lifelong.learner import Learner
from lifelong.memory import Buffer
from lifelong.methods import samples
from lifelong.methods.merging import answer
from lifelong.methods.rehearsal import stored
from lifelong.streams.task import Split, Task
from lifelong.tree import Params


def keep(memory: Buffer, learner: Learner, task: Task, count: int) -> None:
    """Put `count` samples of `task` into `memory`, drawn by the seed: of its validation samples, if it has any."""
    split = (task.validation if len(task.validation) else task.train).ready(learner.device)
    drawn = torch.randperm(len(split), generator=randomness.generator(learner.seed, "few", task.index))
    taken = split.take(drawn[:count].to(learner.device))
    tasks = torch.full_like(taken.targets, task.index, dtype=torch.int64)
    memory.append({"inputs": taken.inputs, "targets": taken.targets, "tasks": tasks}, task.index)


def of_each_task(memory: Buffer, like: Split) -> Iterator[tuple[int, Split]]:
    """Yield each task's index and its samples in `memory`, ready as `like` is."""
    split = stored(memory, like)
    for task in memory.groups.unique().tolist():
        yield task, split.take((memory.groups == task).nonzero().flatten().to(split.targets.device))


@torch.no_grad()
def mean_accuracy(learner: Learner, weights: Params, memory: Buffer, like: Split) -> float:
    """Return the share of the samples in `memory` that the network answers rightly with `weights`, 0 to 1.

    Of a task that predicts a number its R^2, at most 1, counts for each of its samples.
    """
    reached = 0.0
    with evaluating(learner.model), learner.precision():
        for task, split in of_each_task(memory, like):
            batches = split.batches(min(samples.BATCH, learner.largest_batch))
            answers = ((answer(learner, weights, inputs, task), targets) for inputs, targets in batches)
            reached += losses.score(answers) * len(split)
    return reached / len(memory)
