"""Training on all data so far: the upper bound that a continual method is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lifelong import tree
from lifelong.learner import Learner, start_over
from lifelong.methods.method import Method, state
from lifelong.settings import setting
from lifelong.streams.task import Split, Task, joined
from lifelong.tree import Params


@dataclass
class Joint(Method):
    """At each task, train from the initial weights on the training data of all tasks met so far."""

    family: ClassVar[str] = "baseline"
    # Where a stage ends says when it trains on all samples so far, and nothing of which they are.
    boundaries: ClassVar[bool] = False
    keeps_samples: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    alone: ClassVar[str] = "it trains anew on all samples so far"
    regression: ClassVar[bool] = True

    only_last: bool = setting(
        False, "train once, when the last task has come; earlier rows of the matrix stay untrained"
    )
    restart: bool = setting(True, "each stage starts from the initial weights; false goes on from the last stage's")
    start: Params = state(dict)

    def data(self, learner: Learner, tasks: Sequence[Task]) -> Split | None:
        if self.only_last and len(tasks) != learner.planned_tasks:
            return None
        if len(tasks) == 1:
            return super().data(learner, tasks)
        return joined([(task.index, task.train) for task in tasks], learner.device)

    def before_task(self, learner: Learner, task: Task) -> None:
        """Go back to the initial weights; layers that a task brought start as they were when it came."""
        live = tree.weights(learner.model)
        self.start.update(tree.snapshot({name: live[name] for name in live.keys() - self.start.keys()}))
        if self.restart:
            start_over(learner, live, self.start)
