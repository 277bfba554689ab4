"""What all methods that keep samples of old tasks share: a buffer, how it is filled, and how it is drawn from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from lifelong import memory, randomness
from lifelong.errors import InputError
from lifelong.learner import Batch, Learner
from lifelong.memory import Buffer, Columns, Places
from lifelong.methods.method import Method, state
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Split

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclass
class Rehearsal(Method):
    """Abstract: keeps raw samples as the data set stores them (images in uint8)."""

    family: ClassVar[str] = "rehearsal"
    boundaries: ClassVar[bool] = False
    keeps_samples: ClassVar[bool] = True

    capacity: int | str = setting(1000, "samples kept at most, or their size in bytes: 500kB, 5MB")
    per_class: int | None = setting(None, "samples kept of each class (of each task), instead of a capacity", ge=1)
    buffer: Literal["reservoir", "balanced", "ring"] = setting(
        "reservoir", "who is kept: all with the same chance, classes evenly, or the newest of each class"
    )
    replay_batch: int | None = setting(None, "samples drawn a step; as many as the batch has by default", ge=1)
    memory: Buffer = state(Buffer)

    def __post_init__(self) -> None:
        """Raise `InputError` for a capacity that is no size, before anything is run."""
        if isinstance(self.capacity, str) and _bytes(self.capacity) is None:
            raise InputError(f"capacity = {self.capacity!r} must be a number of samples (500) or of bytes (5MB)")
        if isinstance(self.capacity, int) and self.capacity < 1:
            raise InputError(f"capacity = {self.capacity} must be at least 1 sample")

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        """Return the batch with samples of the buffer behind it, and offer its own to the buffer."""
        rows = self.draw(learner, batch)
        self.remember(learner, batch)
        return extended(batch, rows, learner.scenario)

    def remember(self, learner: Learner, batch: Batch) -> None:
        """Offer the new samples of `batch` to the buffer, in the first pass over the data."""
        if learner.clock.epoch == 0:
            self.offer(learner, self.columns(batch), self.random(learner, "kept"))

    def columns(self, batch: Batch) -> Columns:
        """Return the new samples of `batch` as the buffer keeps them."""
        new = batch.new
        tasks = batch.tasks()
        return {"inputs": batch.raw, "targets": batch.targets[:new], "tasks": tasks[:new]}

    def offer(self, learner: Learner, columns: Columns, random: np.random.Generator) -> None:
        """Offer samples with the columns `inputs` (raw), `targets`, `tasks` and any others to the buffer."""
        self.prepare(learner, columns)
        groups = _groups(learner, columns).tolist()
        self.memory.write(self._places(learner)(self.memory, groups, random), columns, groups)
        self.memory.note(groups)

    def prepare(self, learner: Learner, columns: Columns) -> None:
        """Give the buffer its capacity, once samples with `columns` are there to be measured."""
        if self.memory.capacity == 0:
            self.memory.capacity = self._rows(learner, columns)

    def drawn_from(self, learner: Learner) -> Tensor | None:
        """Return the rows of the buffer that this step draws from, `[n]` int64 on the CPU, or None: all."""
        return None

    def old(self, learner: Learner) -> Tensor | None:
        """Return the rows with samples of old tasks, or None where it is not known where a task ends."""
        if not learner.boundaries or len(self.memory) == 0:
            return None
        tasks = self.memory.columns["tasks"][: len(self.memory)]
        return (tasks < learner.clock.task).nonzero().flatten().cpu()

    def draw(self, learner: Learner, batch: Batch, purpose: str = "replay") -> Columns:
        """Return samples drawn at this step, as many as `replay_batch` says; empty where there are none."""
        among = self.drawn_from(learner)
        if len(self.memory if among is None else among) == 0:
            return {}
        count = self.replay_batch or batch.new
        return self.memory.rows(memory.draw(self.memory, count, self.random(learner, purpose), among))

    def random(self, learner: Learner, purpose: str) -> np.random.Generator:
        """Return what this step draws from for `purpose`: a function of seed and step, so nothing needs to be saved."""
        return randomness.numpy_generator(learner.seed, purpose, learner.clock.total_steps)

    def _rows(self, learner: Learner, columns: Columns) -> int:
        """Return how many samples fit, checked against the classes of the stream."""
        planned = learner.planned_classes
        if self.per_class is not None:
            return self.per_class * max(1, sum(planned))
        rows = self.capacity
        if isinstance(rows, str):
            size = sum(each[0].numel() * each.element_size() for each in columns.values())
            rows = int((_bytes(rows) or 0) // size)
        classes = sum(planned) if learner.scenario is Scenario.CLASS else max(planned, default=1)
        if rows < classes:
            raise InputError(
                f"capacity = {self.capacity} holds {rows} samples, fewer than the {classes} classes: "
                f"give it at least {classes}"
            )
        return rows

    def _places(self, learner: Learner) -> Places:
        groups = max(1, sum(learner.planned_classes))
        share = self.per_class or max(1, self.memory.capacity // groups)
        if self.buffer == "ring":
            return memory.ring(share)
        if self.per_class is not None:
            return memory.per_group(share)
        return memory.balanced if self.buffer == "balanced" else memory.reservoir


def extended(batch: Batch, rows: Columns, scenario: Scenario) -> Batch:
    """Return `batch` with the samples of `rows` behind its own, their inputs made ready for the network."""
    if not rows:
        return batch
    tasks = batch.task
    if scenario is Scenario.TASK:
        tasks = torch.cat([batch.tasks(), rows["tasks"]])
    return Batch(
        torch.cat([batch.inputs, batch.scaled(rows["inputs"])]),
        torch.cat([batch.targets, rows["targets"]]),
        tasks,
        batch.raw,
        batch.scaled,
    )


def only(batch: Batch, rows: Columns, scenario: Scenario) -> Batch:
    """Return the samples of `rows` alone, made ready for the network as those of `batch` were."""
    nothing = Batch(batch.inputs[:0], batch.targets[:0], batch.task, batch.raw[:0], batch.scaled)
    if isinstance(batch.task, Tensor):
        nothing.task = batch.task[:0]
    return extended(nothing, rows, scenario)


def stored(buffer: Buffer, like: Split) -> Split:
    """Return all samples of `buffer` as a split, ready as `like` is."""
    rows = buffer.rows(torch.arange(len(buffer)))
    return Split(rows["inputs"], rows["targets"], None, like.mean, like.std, rows["tasks"])


def _groups(learner: Learner, columns: Columns) -> Tensor:
    """Return the group of each sample: its class, and where classes are shared by tasks, its class in its task.

    All samples of a task that predicts a number are of one.
    """
    targets = columns["targets"].cpu()
    if learner.scenario is Scenario.CLASS:
        return targets
    if targets.is_floating_point():
        alone = torch.tensor([count == 1 for count in learner.planned_classes])[columns["tasks"].cpu()]
        targets = torch.where(alone, 0, targets).long()
    return columns["tasks"].cpu() * max(learner.planned_classes, default=int(targets.max()) + 1) + targets


def _bytes(text: str) -> float | None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMG]?)B", text)
    return None if found is None else float(found[1]) * _UNITS[found[2]]
