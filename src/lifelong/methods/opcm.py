"""Orthogonal projection-based continual merging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lifelong.merging.incremental import Incremental
from lifelong.merging.orthogonal import Projected
from lifelong.methods.merging import Merging
from lifelong.settings import setting


@dataclass
class OPCM(Merging):
    """Add each task's change without what lies in the main directions of those before it, at their mean length.

    `S_t = S_{t-1} + P(tau_t)`, `theta = theta_0 + n_t S_t / ||S_t||`, `P` leaving out of each matrix the leading
    singular directions of `S_{t-1}`, `n_t` the mean norm of the task vectors (Tang et al. 2025, 2501.09522;
    `lifelong.merging.orthogonal`). Tasks are trained independently there.
    """

    paper: ClassVar[str] = "2501.09522"

    training: Literal["sequential", "independent"] = setting(
        "independent", "each task begins from the weights after the last one, or from those that the run began with"
    )
    alpha: float = setting(
        0.5, "share of the singular values whose directions are closed to later tasks, 0 to 1", ge=0, le=1
    )

    def begun(self) -> Incremental:
        return Projected(self.alpha)
