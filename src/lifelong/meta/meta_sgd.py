"""Meta-SGD: the learning rate of every single weight is learned as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lifelong import randomness
from lifelong.errors import InputError
from lifelong.meta.inner_loop import InnerLoop, Rate
from lifelong.meta.learner import Problem
from lifelong.settings import setting
from lifelong.tree import Params


@dataclass(frozen=True)
class MetaSGD(InnerLoop):
    """`theta' = theta - alpha * grad L_S(theta)` with `alpha` of the shape of theta, learned together with it.

    Its meta-gradient is `-grad L_S(theta) * grad L_Q(theta')`; rates may become negative. `rate` is not used: rates
    begin uniform between `low` and `high`, drawn the same each time.
    """

    family: ClassVar[str] = "gradient"
    paper: ClassVar[str] = "Li et al. 2017, 1707.09835"

    low: float = setting(0.005, "least rate to begin with", gt=0)
    high: float = setting(0.1, "greatest rate to begin with", gt=0)

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise InputError(f"algorithm meta-sgd: low = {self.low:g} must be at most high = {self.high:g}")

    def parameters(self, problem: Problem) -> Params:
        weights = problem.network.initial()
        rates = {}
        for name, each in weights.items():
            drawn = torch.rand(each.shape, generator=randomness.generator(0, "meta-sgd", name), dtype=each.dtype)
            rates[f"rate.{name}"] = (self.low + (self.high - self.low) * drawn).to(each.device)
        return weights | rates

    def rates(self, meta: Params) -> Rate:
        return lambda step, name: meta[f"rate.{name}"]

    def pace(self) -> str:
        return f"high = {self.high:g}"
