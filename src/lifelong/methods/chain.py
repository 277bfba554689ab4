"""Several methods at once, such as `ewc+lwf`: each hook runs in the order given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lifelong.learner import Batch, Learner
from lifelong.methods.method import Method
from lifelong.streams.task import Split, Task
from lifelong.tree import Params


@dataclass
class Chain(Method):
    """Methods in a row: batches and losses pass through all of them.

    What only one can say (`data`, `forward`, `logits`) the first says whose hook is its own.

    Args:
        methods: at least one.
    """

    methods: dict[str, Method] = field(default_factory=dict)

    def setup(self, learner: Learner) -> None:
        for method in self.methods.values():
            method.setup(learner)

    def before_task(self, learner: Learner, task: Task) -> None:
        for method in self.methods.values():
            method.before_task(learner, task)

    def reshape(self, learner: Learner) -> None:
        for method in self.methods.values():
            method.reshape(learner)

    def trainable(self, learner: Learner) -> Params:
        found: Params = {}
        for method in self.methods.values():
            found.update(method.trainable(learner))
        return found

    def data(self, learner: Learner, tasks: Sequence[Task]) -> Split | None:
        return self._first("data").data(learner, tasks)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        for method in self.methods.values():
            batch = method.batch(learner, batch)
        return batch

    def forward(self, learner: Learner, batch: Batch) -> Tensor:
        return self._first("forward").forward(learner, batch)

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
        return self._first("logits").logits(learner, inputs, task)

    def _first(self, hook: str) -> Method:
        """Return the first method that has a `hook` of its own, or one that does what all do by default."""
        methods = list(self.methods.values())
        own = [each for each in methods if getattr(type(each), hook) is not getattr(Method, hook)]
        return (own or methods)[0]
