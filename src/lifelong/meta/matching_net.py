"""Matching networks: every support sample votes for its class by its likeness to the query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong.meta.episodes import Episodes
from lifelong.meta.learner import MetaLearner, Problem
from lifelong.meta.prototypes import embedded
from lifelong.settings import setting
from lifelong.tree import Params


@dataclass(frozen=True)
class MatchingNet(MetaLearner):
    """`p(c | x) = sum_i softmax_i(cos(f(x), f(x_i)) / T) [y_i = c]` over the support samples i; nothing adapts.

    Without the paper's full-context embeddings (its LSTM over the support samples). Its temperature T is 1, where no
    answer is ever sure, as cosines are at most 1: of 20 classes the right one has a share of 0.28 at most.
    """

    family: ClassVar[str] = "metric"
    paper: ClassVar[str] = "Vinyals et al. 2016, 1606.04080"
    regression: ClassVar[bool] = False
    needs_trunk: ClassVar[bool] = True
    any_ways: ClassVar[bool] = True

    temperature: float = setting(1.0, "by which cosines are divided; 1 in the paper", gt=0)

    def parameters(self, problem: Problem) -> Params:
        return {name: each for name, each in problem.network.initial().items() if name.startswith("trunk.")}

    def loss(self, problem: Problem, meta: Params, episodes: Episodes, iteration: int) -> tuple[Tensor, Tensor]:
        support, query = (F.normalize(each, dim=2) for each in embedded(problem, meta, episodes))
        votes = (torch.bmm(query, support.transpose(1, 2)) / self.temperature).softmax(2)
        shares = torch.bmm(votes, F.one_hot(episodes.support_targets).to(votes.dtype))
        outputs = shares.clamp_min(torch.finfo(shares.dtype).tiny).log()
        return problem.loss(outputs, episodes.query_targets), outputs

    def answers(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes) -> Iterator[Tensor]:
        with torch.no_grad():
            _, outputs = self.loss(problem, meta, episodes, 0)
        yield outputs
