"""Streaming linear discriminant analysis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lifelong.methods.streaming import StreamingClassifier
from lifelong.settings import setting


@dataclass
class SLDA(StreamingClassifier):
    """Linear discriminant analysis over class means and one covariance that all classes share, both running.

    `W_k = Lambda mu_k`, `b_k = -1/2 mu_k . Lambda mu_k` with `Lambda = ((1 - shrinkage) Sigma + shrinkage I)^-1`
    (Hayes & Kanan 2020, 1909.01520, section 3, and the authors' code).

    Our deviations: the paper's running covariance weighs a sample by t/(t+1), with t counting all samples, around the
    mean that its class had then, so it depends on the order. Ours is the covariance within classes itself,
    `Sigma = 1/n sum_n (z_n - mu_{y_n}) (z_n - mu_{y_n})^T` around the means of now. The authors start it from the first
    task's by a shrinkage estimate (OAS); here all samples count alike.
    """

    paper: ClassVar[str] = "1909.01520"

    shrinkage: float = setting(
        1e-4, "share of the identity in the covariance, above 0, to 1 (then nearest class mean)", gt=0, le=1
    )

    def solve(self) -> tuple[Tensor, Tensor]:
        means = self.sums.means()
        covariance = (self.sums.gram - self.sums.total.T @ means) / self.sums.count.sum()
        covariance.mul_(1 - self.shrinkage).diagonal().add_(self.shrinkage)
        weight = torch.linalg.solve(covariance, means.T).T
        return weight, (means * weight).sum(1) / -2
