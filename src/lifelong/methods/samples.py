"""The training samples of a task that importances are measured on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lifelong import randomness
from lifelong.learner import Learner
from lifelong.streams.task import Task

# Larger than a training batch: measuring makes no step, and big matrix products run nearer to the machine's peak.
BATCH = 512


def of_task(learner: Learner, task: Task, samples: int | None) -> tuple[int, Iterator[tuple[Tensor, Tensor]]]:
    """Return how many, and batches of, training samples of `task`: all, or `samples` drawn by the learner's seed."""
    ready = task.train.ready(learner.device)
    if samples is None or samples >= len(ready):
        return len(ready), ready.batches(BATCH)
    generator = randomness.generator(learner.seed, "importance", task.index)
    indices = torch.randperm(len(ready), generator=generator)[:samples].to(learner.device)
    return samples, ready.batches(BATCH, indices)
