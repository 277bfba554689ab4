"""A frozen trunk with a new head: forgets nothing in its features, and learns nothing new in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.learner import Batch, Learner, freeze
from lifelong.methods import structure
from lifelong.methods.method import Method
from lifelong.settings import setting
from lifelong.streams.task import Task


@dataclass
class FeatureExtraction(Method):
    """Freeze the trunk, with its normalisation statistics, and train only the head."""

    family: ClassVar[str] = "baseline"
    boundaries_unless: ClassVar[Mapping[str, Any]] = {"learn_first": False}
    freezes: ClassVar[bool] = True
    regression: ClassVar[bool] = True

    learn_first: bool = setting(
        True, "the trunk learns the first task and is frozen after it; false for pretrained ones"
    )

    def before_task(self, learner: Learner, task: Task) -> None:
        if task.index > 0 or not self.learn_first:
            freeze(learner, learner.model.trunk)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        if learner.clock.task > 0 or not self.learn_first:
            structure.hold_statistics(learner.model.trunk)
        return batch
