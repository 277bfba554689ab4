"""A network for each task: the yardstick of the structural methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.func import functional_call

from lifelong import tree
from lifelong.learner import Learner, start_over
from lifelong.methods.method import Method, state
from lifelong.streams.task import Scenario, Task
from lifelong.tree import Params


@dataclass
class Separate(Method):
    """Train each task from the same initial weights in a network of its own: nothing is forgotten, nothing shared.

    A task to come is answered with the initial weights, which it will start from.
    """

    family: ClassVar[str] = "structural"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.TASK,)
    needs_task_id: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    alone: ClassVar[str] = "networks of old tasks never move, so there is nothing to hold or to replay for"
    regression: ClassVar[bool] = True

    start: Params = state(dict)
    networks: list[Params] = state(list)

    def before_task(self, learner: Learner, task: Task) -> None:
        if not self.start:
            self.start = tree.snapshot(_shared(learner))
        start_over(learner, _shared(learner), self.start)

    def after_task(self, learner: Learner, task: Task) -> None:
        self.networks.append(tree.snapshot(_shared(learner)))

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        begun = learner.clock.task + (1 if learner.clock.step else 0)
        if task < len(self.networks):
            weights = self.networks[task]
        elif task < begun or not self.start:
            return super().logits(learner, inputs, task)
        else:
            weights = self.start
        logits: Tensor = functional_call(learner.model, weights, (inputs, task))
        return logits


def _shared(learner: Learner) -> Params:
    """Return all that tasks would share; a head that is a task's own stays where it is."""
    return {name: each for name, each in tree.weights(learner.model).items() if not name.startswith("head.blocks.")}
