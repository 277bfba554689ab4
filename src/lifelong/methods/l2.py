"""L2 towards the old weights: the control that every importance method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lifelong import tree
from lifelong.learner import Learner
from lifelong.methods.anchor import Anchor
from lifelong.methods.method import Method, state
from lifelong.settings import setting
from lifelong.streams.task import Task


@dataclass
class L2(Method):
    """Penalise `strength/2 * ||theta - theta*||^2`, all parameters alike, theta* the weights after the last task."""

    family: ClassVar[str] = "importance"
    regression: ClassVar[bool] = True

    strength: float = setting(0.1, "weight of the penalty, at least 0", ge=0)
    anchor: Anchor = state(Anchor)

    def before_step(self, learner: Learner) -> None:
        self.anchor.pull(learner.params, self.strength)

    def after_task(self, learner: Learner, task: Task) -> None:
        ones = {
            name: parameter.detach().new_ones(()).expand_as(parameter) for name, parameter in learner.params.items()
        }
        self.anchor.recentre(tree.snapshot(ones), learner.params)
