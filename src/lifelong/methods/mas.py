"""Memory aware synapses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lifelong import curvature
from lifelong.learner import Learner
from lifelong.methods import samples
from lifelong.methods.anchor import Anchor
from lifelong.methods.method import Method, state
from lifelong.settings import setting
from lifelong.streams.task import Task


@dataclass
class MAS(Method):
    """Hold each parameter by how much the network's answers move with it.

    `Omega_i = mean_x |d ||f(x)||^2 / d theta_i|`, per sample and without labels, summed over tasks; centred at the
    newest weights (Aljundi et al. 2018, 1711.09601, eq. 2 and 3).
    """

    family: ClassVar[str] = "importance"
    paper: ClassVar[str] = "1711.09601"

    strength: float = setting(1.0, "weight of the penalty strength/2 * sum Omega (theta - theta*)^2, at least 0", ge=0)
    samples: int | None = setting(None, "training samples that importance is measured on; all by default", ge=1)
    anchor: Anchor = state(Anchor)

    def before_step(self, learner: Learner) -> None:
        self.anchor.pull(learner.params, self.strength)

    def after_task(self, learner: Learner, task: Task) -> None:
        batches = samples.of_task(learner, task, self.samples)
        omega = curvature.mas(learner.model, lambda inputs: learner.model(inputs, task.index), batches)
        self.anchor.follow(omega, learner.params)
