"""Proto-MAML: the head begins as the prototypes of the task's own classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lifelong.meta.episodes import Episodes
from lifelong.meta.inner_loop import Graph, InnerLoop
from lifelong.meta.learner import Problem, network_weights
from lifelong.meta.network import shared
from lifelong.meta.prototypes import prototypes
from lifelong.settings import setting
from lifelong.tree import Params


@dataclass(frozen=True)
class ProtoMAML(InnerLoop):
    """MAML whose head starts from prototypes `p_c`: `w_c = 2 p_c`, `b_c = -||p_c||^2`, so it first answers as ProtoNet.

    The meta-gradient flows through the prototypes, in first order too; in the inner loop the head has weights of its
    own. There is no head to meta-learn, and a test may have other numbers of classes than training.
    """

    family: ClassVar[str] = "gradient"
    paper: ClassVar[str] = "Triantafillou et al. 2019, 1903.03096"
    regression: ClassVar[bool] = False
    needs_trunk: ClassVar[bool] = True
    any_ways: ClassVar[bool] = True

    first_order: bool = setting(False, "take the gradient at the adapted weights")

    def parameters(self, problem: Problem) -> Params:
        return {name: each for name, each in problem.network.initial().items() if name.startswith("trunk.")}

    def begin(self, problem: Problem, meta: Params, episodes: Episodes) -> Params:
        trunk, tasks = network_weights(meta), len(episodes)
        found = prototypes(problem.network.features(shared(trunk, tasks), episodes.support), episodes.support_targets)
        # Shared anew: the inner loop's gradient by the trunk must not go through the head that was made of it.
        return shared(trunk, tasks) | {"head.weight": 2 * found, "head.bias": -found.square().sum(2)}

    def order(self, iteration: int) -> Graph:
        return "first" if self.first_order else "second"
