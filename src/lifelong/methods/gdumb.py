"""Greedy sampler and dumb learner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from lifelong import randomness, tree
from lifelong.learner import Batch, Learner, start_over
from lifelong.methods.method import state
from lifelong.methods.rehearsal import Rehearsal, stored
from lifelong.settings import setting
from lifelong.streams.task import Split, Task
from lifelong.tree import Params


@dataclass
class GDumb(Rehearsal):
    """Keep a balanced buffer, and at the end of each task train a fresh network on nothing else.

    The yardstick for all who use a buffer: a method that does worse has learned nothing but what it stores (Prabhu et
    al. 2020, ECCV, algorithm 1 and 2). The schedule's epochs run over the buffer.
    """

    paper: ClassVar[str] = "ECCV 2020"
    single_pass: ClassVar[bool] = True
    alone: ClassVar[str] = "it trains a fresh network on its buffer and on nothing else"

    buffer: Literal["reservoir", "balanced", "ring"] = setting(
        "balanced", "who is kept: all with the same chance, classes evenly, or the newest of each class"
    )
    start: Params = state(dict)

    def before_task(self, learner: Learner, task: Task) -> None:
        """Offer the task's samples in random order, and go back to the initial weights."""
        ready = task.train.ready(learner.device)
        order = randomness.numpy_generator(learner.seed, "offered", task.index).permutation(len(ready))
        taken = ready.take(torch.from_numpy(order).to(learner.device))
        tasks = taken.targets.new_full(taken.targets.shape, task.index)
        columns = {"inputs": taken.inputs, "targets": taken.targets, "tasks": tasks}
        self.offer(learner, columns, randomness.numpy_generator(learner.seed, "kept", task.index))
        live = tree.weights(learner.model)
        self.start.update(tree.snapshot({name: live[name] for name in live.keys() - self.start.keys()}))
        start_over(learner, live, self.start)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        """Return the batch as it is: it is of the buffer already."""
        return batch

    def data(self, learner: Learner, tasks: Sequence[Task]) -> Split | None:
        return stored(self.memory, tasks[-1].train.ready(learner.device))
