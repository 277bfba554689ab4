"""The training samples of a task that importances are measured on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong import randomness
from lifelong.learner import Learner
from lifelong.streams.task import Split, Task

# Larger than a training batch: measuring makes no step, and big matrix products run nearer to the machine's peak.
BATCH = 512


@dataclass(frozen=True)
class Batches:
    """Batches of samples that can be gone through more than once; its length is the number of samples."""

    split: Split
    indices: Tensor | None
    size: int = BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.split.batches(self.size, self.indices)

    def __len__(self) -> int:
        return len(self.split) if self.indices is None else len(self.indices)


def of_task(learner: Learner, task: Task, samples: int | None) -> Batches:
    """Return the training samples of `task`: all, or so many `samples` drawn by the learner's seed."""
    ready, size = task.train.ready(learner.device), min(BATCH, learner.largest_batch)
    if samples is None or samples >= len(ready):
        return Batches(ready, None, size)
    generator = randomness.generator(learner.seed, "importance", task.index)
    return Batches(ready, torch.randperm(len(ready), generator=generator)[:samples].to(learner.device), size)
