"""Maximally interfered retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lifelong import memory
from lifelong.curvature.per_sample import evaluating
from lifelong.errors import InputError
from lifelong.learner import Batch, Learner
from lifelong.methods import gradients
from lifelong.methods.rehearsal import Rehearsal, extended, only
from lifelong.settings import setting
from lifelong.tree import Params

# Candidates for each sample that is replayed, as in the paper's experiments (50 for 10).
_EACH = 5


@dataclass
class MIR(Rehearsal):
    """Replay the samples that the next step would harm most.

    Of `candidates` drawn from the samples of old tasks those are replayed whose loss rises most from theta to
    `theta - lr * grad L(new batch)` (Aljundi et al. 2019, 1908.04742, eq. 1). Both losses are taken in evaluation mode.
    Where the stream does not tell where a task ends, the candidates are of all samples in the buffer.
    """

    paper: ClassVar[str] = "1908.04742"

    candidates: int | None = setting(
        None, "samples drawn to choose from, more than are replayed; five times as many by default", ge=2
    )

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        wanted = self.replay_batch or batch.new
        if self.candidates is not None and self.candidates <= wanted:
            raise InputError(
                f"candidates = {self.candidates} leave no choice where {wanted} samples are replayed at a step: "
                f"give it more, such as {_EACH * wanted}"
            )
        drawn = memory.draw(
            self.memory, self.candidates or _EACH * wanted, self.random(learner, "replay"), self.old(learner)
        )
        rows = self.memory.rows(drawn) if len(drawn) else {}
        if len(drawn) > wanted:
            harm = interference(learner, batch, only(batch, rows, learner.scenario))
            rows = self.memory.rows(drawn.to(harm.device)[harm.topk(wanted).indices])
        self.remember(learner, batch)
        return extended(batch, rows, learner.scenario)


def interference(learner: Learner, batch: Batch, candidates: Batch) -> Tensor:
    """Return by how much the loss of each of `candidates`, `[n]`, would rise by a gradient step on `batch`."""
    rate = learner.optimizer.param_groups[0]["lr"]
    gradient = gradients.over(learner, batch)
    with torch.no_grad():
        moved = {name: each.detach() - rate * gradient[name] for name, each in learner.params.items()}
        before = _losses(learner, {name: each.detach() for name, each in learner.params.items()}, candidates)
        return _losses(learner, moved, candidates) - before


def _losses(learner: Learner, params: Params, batch: Batch) -> Tensor:
    with evaluating(learner.model), learner.precision():
        logits = functional_call(learner.model, params, (batch.inputs, batch.task))
        return F.cross_entropy(logits, batch.targets, reduction="none")
