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
from lifelong.learner import Batch, Learner
from lifelong.methods import gradients
from lifelong.methods.rehearsal import Rehearsal, extended, only
from lifelong.settings import setting
from lifelong.tree import Params


@dataclass
class MIR(Rehearsal):
    """Replay the samples that the next step would harm most.

    Of `candidates` drawn from the buffer those are replayed whose loss rises most from theta to
    `theta - lr * grad L(new batch)` (Aljundi et al. 2019, 1908.04742, eq. 1). Both losses are taken in evaluation mode.
    """

    paper: ClassVar[str] = "1908.04742"

    candidates: int = setting(50, "samples drawn to choose from, at least as many as are replayed", ge=1)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        wanted = self.replay_batch or batch.new
        drawn = memory.draw(self.memory, max(self.candidates, wanted), self.random(learner, "replay"))
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
