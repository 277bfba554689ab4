"""Ending a task when its validation accuracy no longer rises."""

from __future__ import annotations

from dataclasses import dataclass, field

from lifelong import settings, tree
from lifelong.learner import Learner
from lifelong.methods.method import Method
from lifelong.streams.task import Task
from lifelong.training.evaluation import score
from lifelong.tree import Params


@dataclass
class EarlyStopping:
    """Watches one task at a time, and puts its best weights back when it stops.

    Args:
        patience: epochs without a better validation accuracy after which the task ends.
    """

    patience: int = settings.setting(5, "epochs without a better validation accuracy", ge=1)
    best: float | None = field(init=False, default=None)
    waited: int = field(init=False, default=0)
    weights: Params = field(init=False, default_factory=dict)

    def start(self) -> None:
        """Forget the last task."""
        self.best, self.waited, self.weights = None, 0, {}

    def look(self, learner: Learner, method: Method, task: Task) -> None:
        """Measure after an epoch; sets `learner.clock.stop_task` when patience is over."""
        reached = score(learner, method, task, task.validation)
        if self.best is None or reached > self.best or not self._fit(learner):
            self.best, self.waited = reached, 0
            self.weights = tree.snapshot(_moving(learner))
        else:
            self.waited += 1
        learner.clock.stop_task = self.waited >= self.patience

    def finish(self, learner: Learner) -> None:
        """Put the best weights back."""
        if self.weights and self._fit(learner):
            tree.copy_(_moving(learner), self.weights)

    def _fit(self, learner: Learner) -> bool:
        """Whether the best weights are those of a network of the same shape, which has not grown since."""
        live = _moving(learner)
        return all(live[name].shape == each.shape for name, each in self.weights.items())


def _moving(learner: Learner) -> Params:
    """Return the network's weights, and what the method trains besides."""
    return {**tree.weights(learner.model), **learner.trained}
