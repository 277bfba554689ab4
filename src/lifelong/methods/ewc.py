"""Elastic weight consolidation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lifelong import curvature, randomness
from lifelong.learner import Learner
from lifelong.methods import samples
from lifelong.methods.anchor import Anchor
from lifelong.methods.method import Method, state
from lifelong.settings import setting
from lifelong.streams.task import Task


@dataclass
class EWC(Method):
    """Hold each parameter by the diagonal of its Fisher information.

    `F_i = E_x E_{y ~ p(.|x)} [(d log p(y|x) / d theta_i)^2]`, squares of per-sample gradients on the training data of
    the finished task (Kirkpatrick et al. 2017, 1612.00796, eq. 3). Separate penalties, one a task, are kept as their
    exact sum. Online (Schwarz et al. 2018, 1805.06370): `A <- decay * A + F`, centred at the newest weights.
    """

    family: ClassVar[str] = "importance"
    paper: ClassVar[str] = "1612.00796"
    regression: ClassVar[bool] = True

    strength: float = setting(100.0, "weight of the penalty strength/2 * sum A (theta - c)^2, at least 0", ge=0)
    fisher: Literal["true", "sampled", "empirical", "batched"] = setting(
        "sampled",
        "labels: all classes weighed by the model (true), one drawn from it (sampled), the given one (empirical); "
        "batched squares batch means, as some libraries do, and is wrong",
    )
    samples: int | None = setting(None, "training samples that the Fisher is measured on; all by default", ge=1)
    online: bool = setting(False, "one decaying penalty around the newest weights instead of one a task")
    decay: float = setting(1.0, "what the online penalty keeps of the older tasks, 0 to 1", ge=0, le=1)
    anchor: Anchor = state(Anchor)

    def before_step(self, learner: Learner) -> None:
        self.anchor.pull(learner.params, self.strength)

    def after_task(self, learner: Learner, task: Task) -> None:
        batches = samples.of_task(learner, task, self.samples)
        generator = randomness.generator(learner.seed, "fisher", task.index)
        fisher = curvature.fisher(
            learner.model,
            lambda inputs: learner.model(inputs, task.index),
            batches,
            kind=self.fisher,
            generator=generator,
        )
        if self.online:
            self.anchor.follow(fisher, learner.params, keep=self.decay)
        else:
            self.anchor.add(fisher, learner.params)
