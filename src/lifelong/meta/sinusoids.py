"""Regression tasks of the MAML paper: a sine wave of unknown height and phase, seen at a few points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong.meta.episodes import TRIED, Episodes, squared_error


@dataclass(frozen=True)
class Sinusoids:
    """Tasks `y = a sin(x - p)` with a in 0.1..5, p in 0..pi, x in -5..5, each uniform (Finn et al. 2017, 1703.03400).

    Args:
        shots: points that a task is learned from.
        queries: points that it is judged by.
        device: where they are.
    """

    shots: int = 10
    queries: int = 10
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    loss = staticmethod(squared_error)
    score = staticmethod(squared_error)
    outputs = 1

    def sample(self) -> Tensor:
        return torch.zeros(min(TRIED, self.shots + self.queries), 1, dtype=self.dtype, device=self.device)

    def draw(self, tasks: int, generator: torch.Generator) -> Episodes:
        def uniform(low: float, high: float, samples: int) -> Tensor:
            drawn = torch.rand(tasks, samples, 1, generator=generator, dtype=self.dtype)
            return (low + (high - low) * drawn).to(self.device)

        height, phase = uniform(0.1, 5.0, 1), uniform(0.0, math.pi, 1)
        points = uniform(-5.0, 5.0, self.shots + self.queries)
        values = height * torch.sin(points - phase)
        cut = self.shots
        return Episodes(points[:, :cut], values[:, :cut], points[:, cut:], values[:, cut:])
