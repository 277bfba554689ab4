"""Prototypical networks: the nearest mean of a class answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lifelong.meta.episodes import Episodes
from lifelong.meta.learner import MetaLearner, Problem
from lifelong.meta.prototypes import embedded, prototypes
from lifelong.tree import Params


@dataclass(frozen=True)
class ProtoNet(MetaLearner):
    """Logits are negative squared distances to each class's mean feature, `-||f(x) - p_c||^2`; nothing adapts.

    The paper trains with more ways than it tests (60 for Omniglot): see `train_ways`.
    """

    family: ClassVar[str] = "metric"
    paper: ClassVar[str] = "Snell et al. 2017, 1703.05175"
    regression: ClassVar[bool] = False
    needs_trunk: ClassVar[bool] = True
    any_ways: ClassVar[bool] = True

    def parameters(self, problem: Problem) -> Params:
        return {name: each for name, each in problem.network.initial().items() if name.startswith("trunk.")}

    def loss(self, problem: Problem, meta: Params, episodes: Episodes, iteration: int) -> tuple[Tensor, Tensor]:
        support, query = embedded(problem, meta, episodes)
        outputs = -squared_distances(query, prototypes(support, episodes.support_targets))
        return problem.loss(outputs, episodes.query_targets), outputs

    def answers(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes) -> Iterator[Tensor]:
        with torch.no_grad():
            _, outputs = self.loss(problem, meta, episodes, 0)
        yield outputs


def squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return squared Euclidean distances `[tasks, points, centres]`, twice differentiable at 0 too, unlike `cdist`."""
    cross = torch.bmm(points, centres.transpose(1, 2))
    return points.square().sum(2, keepdim=True) + centres.square().sum(2).unsqueeze(1) - 2 * cross
