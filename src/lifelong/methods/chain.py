"""Several methods at once, such as `ewc+lwf`: each hook runs in the order given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lifelong.learner import Batch, Learner
from lifelong.methods.method import Method
from lifelong.streams.task import Task


@dataclass
class Chain(Method):
    """Methods in a row: batches and losses pass through all of them; the first whose `logits` is its own answers.

    Args:
        methods: at least one.
    """

    methods: dict[str, Method] = field(default_factory=dict)

    def setup(self, learner: Learner) -> None:
        for method in self.methods.values():
            method.setup(learner)

    def data(self, learner: Learner, tasks: Sequence[Task]) -> Sequence[Task]:
        return max((method.data(learner, tasks) for method in self.methods.values()), key=len)

    def before_task(self, learner: Learner, task: Task) -> None:
        for method in self.methods.values():
            method.before_task(learner, task)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        for method in self.methods.values():
            batch = method.batch(learner, batch)
        return batch

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        for method in self.methods.values():
            loss = method.loss(learner, batch, logits, loss)
        return loss

    def after_backward(self, learner: Learner) -> None:
        for method in self.methods.values():
            method.after_backward(learner)

    def before_step(self, learner: Learner) -> None:
        for method in self.methods.values():
            method.before_step(learner)

    def after_step(self, learner: Learner) -> None:
        for method in self.methods.values():
            method.after_step(learner)

    def after_task(self, learner: Learner, task: Task) -> None:
        for method in self.methods.values():
            method.after_task(learner, task)

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        own = [method for method in self.methods.values() if type(method).logits is not Method.logits]
        return own[0].logits(learner, inputs, task) if own else super().logits(learner, inputs, task)
