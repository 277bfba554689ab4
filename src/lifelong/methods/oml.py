"""Online-aware meta-learning on a stream."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lifelong import tree
from lifelong.learner import Batch, Learner
from lifelong.methods.inner_steps import descended, parts
from lifelong.methods.rehearsal import Rehearsal
from lifelong.settings import setting
from lifelong.tree import Params


@dataclass
class OML(Rehearsal):
    """Learn features on which a head that learns online does not forget.

    Features are computed once; from its weights W the head makes steps `W_k = W_(k-1) - rate * grad CE(part k)` on the
    parts of the new batch. The run's optimiser descends the cross-entropy of `W_K` over the batch and samples of the
    buffer, by the weights of the trunk and by W, with derivatives through the steps (Javed & White 2019, 1905.12588,
    eq. 2 and algorithm 1).

    The paper meta-trains on one set of classes and then learns the others online, with fixed features. Here both
    happen at once, on the stream: the buffer stands for the paper's random samples, and answers are those of W. The
    part that learns online is the head, its last layer alone.
    """

    paper: ClassVar[str] = "1905.12588"
    against_divergence: ClassVar[str] = "try a smaller method.rate or lr, or clip the gradient"

    rate: float = setting(0.03, "inner learning rate of the head", ge=0)
    steps: int = setting(5, "inner steps, each on an equal part of the new samples of a batch", ge=1)

    def forward(self, learner: Learner, batch: Batch) -> Tensor:
        """Return the logits after the head's steps."""
        batch.features = learner.model.features(batch.inputs)
        start = tree.parameters(learner.model.head)
        losses = [functools.partial(_loss, learner, batch, rows) for rows in parts(batch, self.steps)]
        adapted = descended(start, losses, dict.fromkeys(start, self.rate), second_order=True)
        logits: Tensor = functional_call(learner.model.head, adapted, (batch.features, batch.task))
        return logits


def _loss(learner: Learner, batch: Batch, rows: Tensor, head: Params) -> Tensor:
    task = batch.task[rows] if isinstance(batch.task, Tensor) else batch.task
    return F.cross_entropy(functional_call(learner.model.head, head, (batch.features[rows], task)), batch.targets[rows])
