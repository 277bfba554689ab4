"""Several methods at once, such as `ewc+lwf`: each hook runs in the order given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lifelong.errors import InputError
from lifelong.learner import Batch, Learner
from lifelong.methods.method import Method
from lifelong.streams.task import Split, Task
from lifelong.tree import Params


@dataclass
class Chain(Method):
    """Methods in a row: batches, losses and answers pass through all, losses first through one that makes them anew.

    What only one can say (`data`, `forward`, `logits`), it says whose hook is its own. Methods that could not both be
    heeded are refused: two that have such a hook, that make the loss anew, or that put samples of a buffer into the
    batch, and any beside one that stands `alone`.

    Args:
        methods: at least one, by name.

    Raises:
        InputError: methods that cannot be chained.
    """

    methods: dict[str, Method] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would be learned otherwise than its parts say."""
        whole = "+".join(self.methods)
        for name, method in self.methods.items():
            if method.alone and len(self.methods) > 1:
                raise InputError(f"method {whole}: {name} cannot be chained, as {method.alone}")
        for what, has in _ONCE.items():
            both = [name for name, method in self.methods.items() if has(method)]
            if len(both) > 1:
                raise InputError(f"method {whole}: {both[0]} and {both[1]} both {what}, so choose one of them")

    def setup(self, learner: Learner) -> None:
        for method in self.methods.values():
            method.setup(learner)

    def before_task(self, learner: Learner, task: Task) -> None:
        for method in sorted(self.methods.values(), key=lambda each: not each.freezes):
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
        return self._whose("data").data(learner, tasks)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        for method in self.methods.values():
            batch = method.batch(learner, batch)
        return batch

    def forward(self, learner: Learner, batch: Batch) -> Tensor:
        return self._whose("forward").forward(learner, batch)

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        for method in sorted(self.methods.values(), key=lambda each: not each.makes_loss):
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
        return self._whose("logits").logits(learner, inputs, task)

    def restrict(self, learner: Learner, inputs: Tensor, logits: Tensor) -> Tensor:
        for method in self.methods.values():
            logits = method.restrict(learner, inputs, logits)
        return logits

    def weights(self, learner: Learner) -> Params:
        return self._whose("weights").weights(learner)

    def measures(self) -> dict[str, Any]:
        return {name: each for method in self.methods.values() for name, each in method.measures().items()}

    def _whose(self, hook: str) -> Method:
        """Return the method that has a `hook` of its own, or one that does what all do by default."""
        methods = list(self.methods.values())
        return next((each for each in methods if _own(each, hook)), methods[0])


def _own(method: Method, hook: str) -> bool:
    return getattr(type(method), hook) is not getattr(Method, hook)


# What one method of a chain may do at most.
_ONCE: dict[str, Callable[[Method], bool]] = {
    "replay samples": lambda method: method.family == "rehearsal",
    "make the loss anew": lambda method: method.makes_loss,
    "choose the samples of a task": lambda method: _own(method, "data"),
    "run the network their own way": lambda method: method.routes or _own(method, "forward"),
    "answer their own way": lambda method: method.routes or _own(method, "logits"),
}
