"""Nearest class mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lifelong.methods.streaming import StreamingClassifier


@dataclass
class NCM(StreamingClassifier):
    """Answer with the class whose mean features are nearest, in Euclidean distance.

    `argmin_k ||z - mu_k||^2` over the mean features `mu_k` of all samples of class k so far, which needs no training
    (Mensink et al. 2013, "Distance-based image classification", eq. 1; iCaRL's rule, Rebuffi et al. 2017, 1611.07725,
    eq. 2, on all samples and not on exemplars, and without scaling to unit length). Its logits are
    `z . mu_k - 1/2 ||mu_k||^2`, half the negative squared distance but for a term that all classes share.
    """

    paper: ClassVar[str] = "1611.07725"

    def collect(self, inputs: Tensor, embedded: Tensor, labels: Tensor, classes: int) -> None:
        self.sums.add(embedded, labels, classes, gram=False)

    def solve(self) -> tuple[Tensor, Tensor]:
        means = self.sums.means()
        return means, means.square().sum(1) / -2
