"""Look-ahead meta-learning on a stream, with a learned rate for each weight."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lifelong import tree
from lifelong.learner import Batch, Learner
from lifelong.methods.inner_steps import descended, parts
from lifelong.methods.method import state, transient
from lifelong.methods.rehearsal import Rehearsal
from lifelong.settings import setting
from lifelong.streams.task import Task
from lifelong.tree import Params


@dataclass
class LaMAML(Rehearsal):
    """Step so that what the new samples teach, one after another, is good for the old ones too.

    From theta the network makes steps `theta_k = theta_(k-1) - a * grad CE(part k)` on the parts of the new batch. The
    meta-loss is the cross-entropy of `theta_K` over the batch and samples of the buffer, and its gradient moves the
    rates first, `a <- a - rate_lr * grad_a`, and then the weights, `theta <- theta - max(0, a) * grad_theta` (Gupta et
    al. 2020, 2007.13904, algorithm 1). A weight whose rate has become negative waits until new and old samples agree
    on it. First order takes the inner gradients as constants: `grad_theta` is that at `theta_K`, and `grad_a` its
    product with minus the sum of the inner gradients, as the paper has it. A `rate_lr` of 0 leaves the paper's C-MAML.

    The steps are its own: the run's optimiser, `lr` and `clip` do nothing. Answers are those of theta and not of
    `theta_K`, so where inner steps overshoot the meta-loss falls and answers stay at chance: take a smaller rate.
    """

    paper: ClassVar[str] = "2007.13904"
    single_pass: ClassVar[bool] = True
    alone: ClassVar[str] = "it makes its steps itself, at rates that it learns"
    against_divergence: ClassVar[str] = "try a smaller method.rate or method.rate_lr"

    rate: float = setting(0.05, "rate of each weight at first, inner and outer", gt=0)
    rate_lr: float = setting(0.1, "learning rate of the rates; 0 keeps them as they are", ge=0)
    steps: int = setting(5, "inner steps, each on an equal part of the new samples of a batch", ge=1)
    second_order: bool = setting(False, "differentiate through the inner gradients too")
    norm: float | None = setting(2.0, "greatest norm of the gradients of weights and of rates", gt=0)
    rates: Params = state(dict)
    live: Params = transient(dict)

    def before_task(self, learner: Learner, task: Task) -> None:
        for name, each in learner.params.items():
            self.rates.setdefault(name, torch.full_like(each, self.rate, requires_grad=False))

    def forward(self, learner: Learner, batch: Batch) -> Tensor:
        """Return the logits after the look-ahead."""
        self.live = {name: self.rates[name].clone().requires_grad_() for name in learner.params}
        losses = [functools.partial(_loss, learner, batch, rows) for rows in parts(batch, self.steps)]
        ahead = descended(learner.params, losses, self.live, second_order=self.second_order)
        logits: Tensor = functional_call(learner.model, ahead, (batch.inputs, batch.task))
        return logits

    def before_step(self, learner: Learner) -> None:
        """Move rates and weights, and leave the optimiser no gradient."""
        for params in (learner.params, self.live):
            if self.norm is not None:
                torch.nn.utils.clip_grad_norm_(params.values(), self.norm)
        with torch.no_grad():
            for name, slope in tree.gradients(self.live).items():
                self.rates[name].sub_(slope, alpha=self.rate_lr)
            for name, slope in tree.gradients(learner.params).items():
                learner.params[name].sub_(self.rates[name].clamp_min(0) * slope)
        for each in learner.params.values():
            each.grad = None


def _loss(learner: Learner, batch: Batch, rows: Tensor, params: Params) -> Tensor:
    task = batch.task[rows] if isinstance(batch.task, Tensor) else batch.task
    return F.cross_entropy(functional_call(learner.model, params, (batch.inputs[rows], task)), batch.targets[rows])
