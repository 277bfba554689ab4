"""Model-agnostic meta-learning, with the options of MAML++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lifelong.meta.inner_loop import Graph, InnerLoop, Rate
from lifelong.meta.learner import Problem
from lifelong.settings import setting
from lifelong.tree import Params


@dataclass(frozen=True)
class MAML(InnerLoop):
    """An initialisation from which a few steps of gradient descent solve a task.

    The inner loop makes `theta' = theta - a grad L_S(theta)`, n times, from support samples S; the meta-gradient is
    that of `L_Q(theta')` on queries Q by theta, through the steps: `(I - a H_S(theta)) grad L_Q(theta')` for one of
    them.

    Options of MAML++ (Antoniou et al. 2018, 1810.09502): a learned rate for each step and tensor (steps of a test
    beyond those of training take the last one's), the query loss after each step in the meta-loss, annealed linearly to
    that after the last one, and first order to begin with. Its cosine-annealed outer rate is `schedule: cosine`. Its
    batch norm with weights of its own for each step is not here.
    """

    family: ClassVar[str] = "gradient"
    paper: ClassVar[str] = "Finn et al. 2017, 1703.03400"

    first_order: bool = setting(False, "take the gradient at the adapted weights: FOMAML")
    first_order_iterations: int = setting(0, "so many iterations are of first order to begin with", ge=0)
    learn_rates: bool = setting(False, "learn a rate for each step and tensor, from `rate` on (MAML++)")
    multi_step_iterations: int = setting(
        0, "iterations over which the losses after earlier steps fade out of the meta-loss (MAML++)", ge=0
    )

    def parameters(self, problem: Problem) -> Params:
        weights = problem.network.initial()
        if not self.learn_rates:
            return weights
        rates = {
            f"rate.{name}": torch.full((max(self.steps, 1),), self.rate, dtype=each.dtype, device=each.device)
            for name, each in weights.items()
        }
        return weights | rates

    def rates(self, meta: Params) -> Rate:
        if not self.learn_rates:
            return lambda step, name: self.rate
        return lambda step, name: meta[f"rate.{name}"][min(step, self.steps - 1)]

    def order(self, iteration: int) -> Graph:
        return "first" if self.first_order or iteration < self.first_order_iterations else "second"

    def shares(self, iteration: int) -> list[float]:
        left = 1 - iteration / self.multi_step_iterations if iteration < self.multi_step_iterations else 0.0
        if self.steps == 0 or left == 0:
            return [0.0] * self.steps + [1.0]
        early = left / self.steps
        return [0.0] + [early] * (self.steps - 1) + [1 - early * (self.steps - 1)]
