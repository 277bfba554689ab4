"""Dark experience replay, without and with labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong.learner import Batch, Learner
from lifelong.memory import Columns
from lifelong.methods.method import transient
from lifelong.methods.rehearsal import Rehearsal, extended
from lifelong.settings import setting


@dataclass
class DER(Rehearsal):
    """Hold the answers on replayed samples to those that the network gave when it kept them.

    `CE(new) + alpha * mean ||z - h(x)||^2 / K + beta * CE(another draw)` with z the stored logits, K their number
    (Buzzega et al. 2020, 2004.07211, eq. 6 and 7): beta = 0 is DER, above it DER++. Where the head has grown since, the
    outputs that z has are compared; but what holds new classes back are the logits that samples had for them before
    they came, so the head has all its outputs from the start. Both draws and the new samples share one forward pass.
    With `one_draw` both terms are over the same draw: each expects what it does in the paper, and a step learns
    from two batches instead of three. Samples are offered in every pass over the data, as the paper has it: what a
    network answered on first sight is not worth holding on to.
    """

    paper: ClassVar[str] = "2004.07211"
    all_outputs: ClassVar[bool] = True
    makes_loss: ClassVar[bool] = True

    alpha: float = setting(0.5, "weight of the distance to the stored logits, at least 0", ge=0)
    beta: float = setting(0.0, "weight of the labels of a second draw, at least 0; above 0 it is DER++", ge=0)
    one_draw: bool = setting(False, "the labels are those of the first draw, not of another one")
    dark: Columns = transient(dict)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        self.dark = self.draw(learner, batch)
        labelled = self.draw(learner, batch, "labels") if self.beta > 0 and not self.one_draw else {}
        return extended(extended(batch, self.dark, learner.scenario), labelled, learner.scenario)

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        new, end = batch.new, batch.new + (len(self.dark["targets"]) if self.dark else 0)
        answers, outputs = _padded(learner, batch, logits)
        columns = {**self.columns(batch), "logits": answers, "outputs": outputs}
        self.offer(learner, columns, self.random(learner, "kept"))
        if not self.dark:
            return loss
        found = F.cross_entropy(logits[:new], batch.targets[:new])
        if self.alpha > 0:
            found = found + self.alpha * _distance(logits[new:end], self.dark)
        if self.beta > 0:
            labelled = slice(new if self.one_draw else end, None)
            found = found + self.beta * F.cross_entropy(logits[labelled], batch.targets[labelled])
        return found


@dataclass
class DERpp(DER):
    """Dark experience replay with the labels of a second draw (Buzzega et al. 2020, 2004.07211, eq. 7)."""

    beta: float = setting(0.5, "weight of the labels of a second draw, at least 0", ge=0)


def _padded(learner: Learner, batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of the new samples, in rows as long as they may ever be, and how many numbers of each count."""
    own = logits[: batch.new].detach().float()
    finite = own.isfinite()
    width = max(sum(learner.planned_classes), own.shape[1])
    return F.pad(own.where(finite, 0), (0, width - own.shape[1])), finite.sum(1)


def _distance(logits: Tensor, stored: Columns) -> Tensor:
    """Return the mean squared difference of logits `[batch, outputs]` to the stored ones, over the outputs of these."""
    width = min(logits.shape[1], stored["logits"].shape[1])
    present = torch.arange(width, device=logits.device) < stored["outputs"][:, None]
    difference = (logits[:, :width] - stored["logits"][:, :width]).masked_fill(~present, 0)
    return difference.square().sum() / present.sum()
