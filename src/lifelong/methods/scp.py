"""Sliced Cramer preservation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lifelong import curvature, randomness
from lifelong.learner import Learner
from lifelong.methods import samples
from lifelong.methods.anchor import Anchor
from lifelong.methods.method import Method, state
from lifelong.settings import setting
from lifelong.streams.task import Task


@dataclass
class SCP(Method):
    """Hold each parameter by how much it moves the distribution of the network's answers, seen in slices.

    `Gamma = E_{xi on the unit sphere} [(d (xi . zbar) / d theta)^2]` with `zbar = mean_x f(x)`, which is exactly
    `1/K sum_k (d zbar_k / d theta)^2` for K outputs (Kolouri et al., ICLR 2020, eq. 9). `A <- decay * A +
    (1 - decay) * Gamma`, or the sum over tasks where `decay` is none; centred at the newest weights.
    """

    family: ClassVar[str] = "importance"
    paper: ClassVar[str] = "ICLR 2020"
    regression: ClassVar[bool] = True

    strength: float = setting(100.0, "weight of the penalty strength/2 * sum A (theta - theta*)^2, at least 0", ge=0)
    slices: int | None = setting(None, "random projections to sample; the exact expectation by default", ge=1)
    samples: int | None = setting(None, "training samples that importance is measured on; all by default", ge=1)
    decay: float | None = setting(
        None, "share of the older tasks' importance in a running mean, 0 to 1; none sums", ge=0, le=1
    )
    normalize_by_n: bool = setting(False, "divide by the number of samples, as the authors' code does")
    anchor: Anchor = state(Anchor)

    def before_step(self, learner: Learner) -> None:
        self.anchor.pull(learner.params, self.strength)

    def after_task(self, learner: Learner, task: Task) -> None:
        batches = samples.of_task(learner, task, self.samples)
        gamma = curvature.scp(
            learner.model,
            lambda inputs: learner.model(inputs, task.index),
            batches,
            slices=self.slices,
            generator=randomness.generator(learner.seed, "slices", task.index),
            samples=len(batches),
        )
        keep, share = (1.0, 1.0) if self.decay is None or not self.anchor.weight else (self.decay, 1 - self.decay)
        if self.normalize_by_n:
            share /= len(batches)
        self.anchor.follow(gamma, learner.params, keep, share)
