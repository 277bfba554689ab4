"""Coefficients of the merge that are learned on a few samples of each task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lifelong.learner import Learner
from lifelong.merging.incremental import Incremental, Pooled
from lifelong.merging.learned import adamerging
from lifelong.merging.rules.task_arithmetic import TaskArithmetic
from lifelong.methods import few
from lifelong.methods.merging import Answering, Merging
from lifelong.methods.method import state
from lifelong.settings import setting
from lifelong.streams.task import Task
from lifelong.tree import Params


@dataclass
class AdaMerging(Merging):
    """Learn how much of each task's change to add, `theta_0 + sum_t lambda_t^l tau_t`, after each task anew.

    The coefficients minimize the entropy of the merge's answers to `samples` of each task, which are kept; their labels
    are not looked at (Yang et al. 2024, 2310.02575, for tasks trained independently and all at hand). They are of the
    validation split, or of training where there is none. All experts are kept, in main memory.
    """

    paper: ClassVar[str] = "2310.02575"
    keeps_samples: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    regression: ClassVar[bool] = False  # a number that is predicted has no entropy

    training: Literal["sequential", "independent"] = setting(
        "independent", "each task begins from the weights after the last one, or from those that the run began with"
    )
    samples: int = setting(64, "samples of each task that are kept", ge=1)
    per: Literal["task", "layer", "tensor"] = setting("layer", "one coefficient a task, or one a task and layer")
    steps: int = setting(100, "steps of Adam after each task", ge=1)
    rate: float = setting(1e-2, "its learning rate, above 0", gt=0)
    start: float = setting(0.3, "of every coefficient")
    coefficients: dict[str, list[float]] = state(dict)

    def begun(self) -> Incremental:
        return Pooled(TaskArithmetic())

    def statistics(self, learner: Learner, task: Task) -> Params:
        few.keep(self.memory, learner, task, self.samples)
        return {}

    def combined(self, learner: Learner, task: Task) -> Params:
        like = task.train.ready(learner.device)
        experts = [{name: each.to(learner.device) for name, each in expert.items()} for expert in self.kept.experts]
        splits = list(few.of_each_task(self.memory, like))
        learned = adamerging(
            [Answering(learner.model, index) for index, _ in splits],
            _prefixed(self.base),
            list(map(_prefixed, experts)),
            [[(split.scaled(split.inputs), None)] for _, split in splits],
            per=self.per,
            steps=self.steps,
            learning_rate=self.rate,
            start=self.start,
        )
        merged = learned.merged(_prefixed(self.base), list(map(_prefixed, experts)))
        self.coefficients = {_plain(name): list(each) for name, each in learned.coefficients.items()}
        return {_plain(name): each for name, each in merged.items()}

    def measures(self) -> dict[str, Any]:
        return {**super().measures(), "coefficients": self.coefficients}


def _prefixed(params: Params) -> Params:
    return {f"network.{name}": each for name, each in params.items()}


def _plain(name: str) -> str:
    return name.removeprefix("network.")
