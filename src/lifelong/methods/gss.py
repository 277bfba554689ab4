"""Gradient-based sample selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong import memory
from lifelong.learner import Batch, Learner
from lifelong.methods.gradients import over, over_each
from lifelong.methods.rehearsal import Rehearsal, extended, only
from lifelong.settings import setting


@dataclass
class GSS(Rehearsal):
    """Keep samples whose gradients point in unlike directions; replay as experience replay does.

    The score of an arriving sample is its greatest cosine to the gradients of `comparisons` batches drawn from the
    buffer, plus 1. Once the buffer is full, a batch all of whose cosines are below 0 challenges: each of its samples
    one that is drawn by how far its score is above the least, whose place it takes with probability
    `C_stored / (C_stored + C_new)` (Aljundi et al. 2019, 1903.08671, algorithm 2, greedy).

    That batches are compared is the authors' code; the paper has single samples. Of many gradients of single samples
    one nearly always points the same way: domain-incremental, a full buffer of 100 digits never took one of a later
    task.
    """

    paper: ClassVar[str] = "1903.08671"

    comparisons: int = setting(10, "batches of the buffer that arriving samples are compared with", ge=1)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        rows = self.draw(learner, batch)
        if learner.clock.epoch == 0:
            self._select(learner, batch)
        return extended(batch, rows, learner.scenario)

    def _select(self, learner: Learner, batch: Batch) -> None:
        random = self.random(learner, "kept")
        groups = batch.targets.tolist()
        known = self._known(learner, batch, random)
        full = 0 < self.memory.capacity <= len(self.memory)
        if not full or self._unlike(learner, batch, known):
            columns = {**self.columns(batch), "scores": self._scores(learner, batch, known)}
            self.prepare(learner, columns)
            places = self._challenged(columns["scores"], random) if full else self._free(batch.new)
            self.memory.write(places, columns, groups)
        self.memory.note(groups)

    def _known(self, learner: Learner, batch: Batch, random: np.random.Generator) -> Tensor:
        """Return the gradients over batches of the buffer that share no sample, `[n, parameters]`, of length 1."""
        size = self.replay_batch or batch.new
        drawn = memory.draw(self.memory, self.comparisons * size, random)
        if len(drawn) == 0:
            return torch.empty(0)
        mixed = drawn[torch.from_numpy(random.permutation(len(drawn)))]
        return torch.stack(
            [_direction(learner, only(batch, self.memory.rows(rows), learner.scenario)) for rows in mixed.split(size)]
        )

    def _unlike(self, learner: Learner, batch: Batch, known: Tensor) -> bool:
        return float((known @ _direction(learner, batch)).max()) < 0

    def _scores(self, learner: Learner, batch: Batch, known: Tensor) -> Tensor:
        """Return the score of each new sample, `[new]` in 0..2; nothing is known: 1.1, as in the authors' code."""
        if len(known) == 0:
            return torch.full((batch.new,), 1.1, device=batch.targets.device)
        return (sample_gradients(learner, batch) @ known.T).amax(1).clamp(-1, 1) + 1

    def _free(self, count: int) -> list[int]:
        """Return the free row that each of `count` new samples takes, or -1."""
        return [row if row < self.memory.capacity else -1 for row in range(len(self.memory), len(self.memory) + count)]

    def _challenged(self, scores: Tensor, random: np.random.Generator) -> list[int]:
        """Return the row that each new sample takes from another one, or -1; no row is challenged twice."""
        stored = self.memory.columns["scores"][: len(self.memory)].double().cpu().numpy()
        count = min(len(scores), len(stored))
        weights = stored - stored.min() + 1e-12
        rivals = random.choice(len(stored), count, replace=False, p=weights / weights.sum())
        chances = stored[rivals] / np.maximum(stored[rivals] + scores[:count].double().cpu().numpy(), 1e-12)
        taken = np.where(random.random(count) < chances, rivals, -1)
        return [*map(int, taken), *[-1] * (len(scores) - count)]


def _direction(learner: Learner, batch: Batch) -> Tensor:
    found = over(learner, batch)
    return F.normalize(torch.cat([each.flatten() for each in found.values()]), dim=0)


def sample_gradients(learner: Learner, batch: Batch) -> Tensor:
    """Return the gradient of the cross-entropy of each sample, scaled to length 1, `[batch, parameters]`."""
    tasks = batch.task.tolist() if isinstance(batch.task, Tensor) else [batch.task] * len(batch.targets)
    singles = [
        Batch(batch.inputs[place : place + 1], batch.targets[place : place + 1], task)
        for place, task in enumerate(tasks)
    ]
    found = over_each(learner, learner.params, singles)
    return F.normalize(torch.cat([each.flatten(1) for each in found.values()], 1), dim=1)
