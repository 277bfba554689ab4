"""Memory aware synapses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong import curvature
from lifelong.learner import Batch, Learner
from lifelong.methods import samples
from lifelong.methods.anchor import Anchor
from lifelong.methods.method import Method, state, transient
from lifelong.settings import setting
from lifelong.streams.task import Task


@dataclass
class MAS(Method):
    """Hold each parameter by how much the network's answers move with it.

    `Omega_i = mean_x |d ||f(x)||^2 / d theta_i|`, per sample and without labels, summed over tasks; centred at the
    newest weights (Aljundi et al. 2018, 1711.09601, eq. 2 and 3).

    Online, the mean is over batches instead, the one at hand every `interval` steps, weighed alike, around the weights
    at the last of them: no task's end need be known. Aljundi et al. 2019 (1812.03596) measure where the loss is flat.
    """

    family: ClassVar[str] = "importance"
    paper: ClassVar[str] = "1711.09601"
    boundaries_unless: ClassVar[Mapping[str, Any]] = {"online": True}
    regression: ClassVar[bool] = True

    strength: float = setting(1.0, "weight of the penalty strength/2 * sum Omega (theta - theta*)^2, at least 0", ge=0)
    samples: int | None = setting(None, "training samples that importance is measured on; all by default", ge=1)
    online: bool = setting(False, "measure on the batch at hand every so many steps, and not at the end of a task")
    interval: int = setting(100, "online: steps from one measurement to the next", ge=1)
    anchor: Anchor = state(Anchor)
    measured: int = state(int)
    at_hand: Batch | None = transient(lambda: None)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        self.at_hand = batch
        return batch

    def before_step(self, learner: Learner) -> None:
        self.anchor.pull(learner.params, self.strength)

    def after_step(self, learner: Learner) -> None:
        batch = self.at_hand
        if not self.online or batch is None or (learner.clock.total_steps + 1) % self.interval:
            return
        samples_now = [(batch.inputs, batch.targets)]
        omega = curvature.mas(learner.model, lambda inputs: learner.model(inputs, batch.task), samples_now)
        self.measured += 1
        self.anchor.follow(omega, learner.params, keep=1 - 1 / self.measured, share=1 / self.measured)

    def after_task(self, learner: Learner, task: Task) -> None:
        self.at_hand = None
        if self.online:
            return
        batches = samples.of_task(learner, task, self.samples)
        omega = curvature.mas(learner.model, lambda inputs: learner.model(inputs, task.index), batches)
        self.anchor.follow(omega, learner.params)
