"""Experience replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from lifelong.learner import Batch, Learner
from lifelong.losses import task_loss
from lifelong.methods.method import state
from lifelong.methods.rehearsal import Rehearsal
from lifelong.settings import setting
from lifelong.streams.task import Task


@dataclass
class ER(Rehearsal):
    """Learn from samples of old tasks together with the new ones.

    Each step descends the mean cross-entropy over the batch and as many samples of the buffer (Chaudhry et al. 2019,
    1902.10486, algorithm 1). `weighting: tasks` is `1/t * CE(new) + (1 - 1/t) * CE(replayed)` at the t-th task, where
    samples of old tasks alone are replayed, as van de Ven et al. 2022 have it.
    """

    paper: ClassVar[str] = "1902.10486"
    makes_loss: ClassVar[bool] = True
    regression: ClassVar[bool] = True

    weighting: Literal["samples", "tasks"] = setting(
        "samples", "all samples weigh the same, or the new ones 1/t and the replayed ones the rest"
    )
    tasks: int = state(int)

    def drawn_from(self, learner: Learner) -> Tensor | None:
        return self.old(learner) if self.weighting == "tasks" else None

    def before_task(self, learner: Learner, task: Task) -> None:
        self.tasks = task.index + 1

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        new = batch.new
        if self.weighting == "samples" or len(logits) == new:
            return loss
        fresh = task_loss(logits[:new], batch.targets[:new])
        replayed = task_loss(logits[new:], batch.targets[new:])
        return fresh / self.tasks + replayed * (1 - 1 / self.tasks)
