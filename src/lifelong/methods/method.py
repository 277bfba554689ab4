"""The hooks: what a continual method may do besides descending the loss of the task at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lifelong.learner import Batch, Learner
from lifelong.streams.task import Scenario, Task

ALL_SCENARIOS = (Scenario.TASK, Scenario.DOMAIN, Scenario.CLASS)


def state(make: Callable[[], Any]) -> Any:
    """Declare a field that a checkpoint holds: tensors, numbers, strings, and dicts, lists or dataclasses of them."""
    return dataclasses.field(init=False, repr=False, default_factory=make)


def transient(make: Callable[[], Any]) -> Any:
    """Declare a field that lives within a step, or can be made again from the state; no checkpoint holds it."""
    return dataclasses.field(init=False, repr=False, default_factory=make, metadata={"transient": True})


@dataclass
class Method:
    """A continual-learning method; every hook does nothing by default.

    Fields that the constructor takes are settings (`lifelong.settings.setting`); all others are state (`state`) or
    `transient`. Within a step the hooks run in the order `batch`, `loss`, `after_backward`, `before_step`,
    `after_step`. Gradients seen by `after_backward` are those of the loss alone, in whatever order methods are
    chained, because they are changed only in `before_step`.
    """

    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    scenarios: ClassVar[tuple[Scenario, ...]] = ALL_SCENARIOS

    def setup(self, learner: Learner) -> None:
        """Prepare before the first task."""

    def data(self, learner: Learner, tasks: Sequence[Task]) -> Sequence[Task]:
        """Return the tasks, of those met so far, whose training samples this stage runs over: the newest."""
        return tasks[-1:]

    def before_task(self, learner: Learner, task: Task) -> None:
        """Prepare for `task`; its head exists, no step has been made, and the optimiser is made afterwards."""

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        """Return the batch to learn from, for instance with samples of a buffer added."""
        return batch

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        """Return the loss to descend, given the loss so far (mean cross-entropy at first), both 0-d."""
        return loss

    def after_backward(self, learner: Learner) -> None:
        """Look at the gradients of the loss in `learner.params`; do not change them."""

    def before_step(self, learner: Learner) -> None:
        """Change the gradients: add an anchor's, project, mask."""

    def after_step(self, learner: Learner) -> None:
        """Follow the path of the parameters, which have just moved."""

    def after_task(self, learner: Learner, task: Task) -> None:
        """Keep what later tasks must know of `task`."""

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        """Return the logits `[batch, outputs]` that answer for `inputs` at prediction time."""
        logits: Tensor = learner.model(inputs, task)
        return logits
