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
from lifelong.methods.gradients import over_each
from lifelong.methods.rehearsal import Rehearsal, extended, only
from lifelong.settings import setting


@dataclass
class GSS(Rehearsal):
    """Keep samples whose gradients point in unlike directions; replay as experience replay does.

    The score of an arriving sample is its greatest cosine to the gradients of `comparisons` random samples of the
    buffer, plus 1. Once the buffer is full, a sample with a score below 1 challenges one that is drawn in proportion to
    the stored scores, and takes its place with probability `C_stored / (C_stored + C_new)` (Aljundi et al. 2019,
    1903.08671, algorithm 2, greedy). Gradients are those of each sample, as the paper has them, and not of a batch.
    """

    paper: ClassVar[str] = "1903.08671"

    comparisons: int = setting(10, "samples of the buffer that an arriving one is compared with", ge=1)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        rows = self.draw(learner, batch)
        if learner.clock.epoch == 0:
            self._select(learner, batch)
        return extended(batch, rows, learner.scenario)

    def _select(self, learner: Learner, batch: Batch) -> None:
        random = self.random(learner, "kept")
        scores = self._scores(learner, batch, random)
        columns = {**self.columns(batch), "scores": scores}
        self.prepare(learner, columns)
        groups = batch.targets.tolist()
        self.memory.write(self._challenged(scores.tolist(), random), columns, groups)
        self.memory.note(groups)

    def _scores(self, learner: Learner, batch: Batch, random: np.random.Generator) -> Tensor:
        """Return the score of each new sample, `[new]` in 0..2; in an empty buffer nothing is like any other: 0.1."""
        drawn = memory.draw(self.memory, self.comparisons, random)
        if len(drawn) == 0:
            return torch.full((batch.new,), 0.1, device=batch.targets.device)
        known = sample_gradients(learner, only(batch, self.memory.rows(drawn), learner.scenario))
        new = sample_gradients(learner, batch)
        return (new @ known.T).amax(1).clamp(-1, 1) + 1

    def _challenged(self, scores: list[float], random: np.random.Generator) -> list[int]:
        """Return the row that each new sample takes, or -1."""
        stored = self.memory.columns["scores"][: len(self.memory)].double().tolist() if len(self.memory) else []
        places = []
        for score in scores:
            if len(stored) < self.memory.capacity:
                places.append(len(stored))
                stored.append(score)
                continue
            place = -1
            if score < 1:
                weights = np.asarray(stored) + 1e-12
                rival = int(random.choice(len(stored), p=weights / weights.sum()))
                if random.random() < stored[rival] / max(stored[rival] + score, 1e-12):
                    place, stored[rival] = rival, score
            places.append(place)
        return places


def sample_gradients(learner: Learner, batch: Batch) -> Tensor:
    """Return the gradient of the cross-entropy of each sample, scaled to length 1, `[batch, parameters]`."""
    tasks = batch.task.tolist() if isinstance(batch.task, Tensor) else [batch.task] * len(batch.targets)
    singles = [
        Batch(batch.inputs[place : place + 1], batch.targets[place : place + 1], task)
        for place, task in enumerate(tasks)
    ]
    found = over_each(learner, learner.params, singles)
    return F.normalize(torch.cat([each.flatten(1) for each in found.values()], 1), dim=1)
