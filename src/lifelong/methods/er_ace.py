"""Experience replay with asymmetric cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong.learner import Batch, Learner
from lifelong.methods.rehearsal import Rehearsal
from lifelong.streams.task import Scenario


@dataclass
class ERACE(Rehearsal):
    """Let new samples compete only among their own classes, so that they do not push the old ones away.

    `CE(new; classes of the batch) + CE(replayed; all classes)` (Caccia et al. 2022, 2104.05025, eq. 3 and 4). Outputs
    of classes that were never seen compete too, as in the authors' code. Before anything is replayed it is plain
    cross-entropy.
    """

    paper: ClassVar[str] = "2104.05025"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.CLASS,)
    makes_loss: ClassVar[bool] = True

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        new = batch.new
        if len(logits) == new:
            return loss
        arrived = self.memory.arrived[: logits.shape[1]]
        absent = F.pad(arrived > 0, (0, logits.shape[1] - len(arrived))).to(logits.device)
        absent[batch.targets[:new]] = False
        fresh = F.cross_entropy(logits[:new].masked_fill(absent, -torch.inf), batch.targets[:new])
        return fresh + F.cross_entropy(logits[new:], batch.targets[new:])
