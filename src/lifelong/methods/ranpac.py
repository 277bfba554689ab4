"""Random projections and ridge regression on pretrained features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lifelong import randomness
from lifelong.errors import InputError
from lifelong.learner import Learner
from lifelong.methods.method import state, transient
from lifelong.methods.streaming import StreamingClassifier, Sums, exact
from lifelong.settings import setting

# The paper's candidates; the strongest first, as it wins where the held-out samples do not tell them apart.
RIDGES = [10.0**power for power in range(8, -9, -1)]
_HELD = 5  # one in so many samples is held out


@dataclass
class RanPAC(StreamingClassifier):
    """Ridge regression of one-hot labels on `h = relu(z P)`, with P random and never trained.

    `W = (G + ridge I)^-1 C` with `G = sum_n h_n h_n^T`, `C = sum_n h_n y_n^T` and P of standard normal numbers drawn by
    the seed (McDonnell et al. 2023, 2307.02251, section 4, and the authors' code). By default ridge is that of 10^-8,
    10^-7 .. 10^8 with the least squared error on a fifth of the samples when solved on the others; then all are used.

    Our deviations: the authors hold out the last fifth of the newest task alone. Here the samples held out are told by
    a checksum of their inputs, in all tasks, and have sums of their own, so that neither order nor task enters the
    choice; that doubles the memory, which a given `ridge` saves. The adapters of the paper's first session are not
    there: `learn_first` trains the whole trunk. Memory is `16 width^2` bytes, half of it with `ridge`.
    """

    paper: ClassVar[str] = "2307.02251"

    width: int = setting(1000, "random features; the paper has 10000 over those of a pretrained transformer", ge=1)
    ridge: float | None = setting(None, "strength of the ridge, above 0; chosen on held-out samples by default", gt=0)
    held: Sums = state(Sums)
    projection: Tensor | None = transient(lambda: None)

    def embed(self, learner: Learner, features: Tensor) -> Tensor:
        wide = exact(features.device)
        if self.projection is None:
            drawn = randomness.generator(learner.seed, "projection")
            self.projection = torch.randn(features.shape[1], self.width, generator=drawn).to(features.device, wide)
        return (features.to(wide) @ self.projection).relu_()

    def collect(self, inputs: Tensor, embedded: Tensor, labels: Tensor, classes: int) -> None:
        self.sums.add(embedded, labels, classes)
        if self.ridge is None:
            chosen = checksum(inputs) % _HELD == 0
            self.held.add(embedded[chosen], labels[chosen], classes)

    def solve(self) -> tuple[Tensor, Tensor]:
        ridge = self._chosen() if self.ridge is None else self.ridge
        weight = _solve(self.sums.gram, self.sums.total, ridge)
        if weight is None:
            raise InputError(f"ridge = {ridge} is lost in the rounding of sums over the features: choose a larger one")
        return weight, weight.new_zeros(len(weight))

    def _chosen(self) -> float:
        gram, total = self.sums.gram - self.held.gram, self.sums.total - self.held.total
        best, least = RIDGES[0], torch.inf
        for ridge in RIDGES:
            weight = _solve(gram, total, ridge)
            if weight is None:
                break
            # ||H W - Y||^2 over the held-out samples, less ||Y||^2, which is the same for all.
            error = float((weight @ self.held.gram * weight).sum() - 2 * (weight * self.held.total).sum())
            if error < least:
                best, least = ridge, error
        return best


def checksum(inputs: Tensor) -> Tensor:
    """Return a number `[batch]` int64 for each of `inputs` `[batch, ...]` that depends on its bits and nothing else."""
    # Integers, because a sum of reals depends on how a batch is cut; overflow wraps around and does no harm.
    words = (inputs if inputs.element_size() >= 4 else inputs.float()).flatten(1).contiguous().view(torch.int32)
    drawn = torch.randint(2**31, (words.shape[1],), generator=randomness.generator(0, "checksum"), dtype=torch.int32)
    return (words * drawn.to(words.device)).sum(1)


def _solve(gram: Tensor, total: Tensor, ridge: float) -> Tensor | None:
    """Return `((gram + ridge I)^-1 total^T)^T`, or None where rounding has left the matrix not positive definite."""
    damped = gram.clone()
    damped.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(damped)
    return None if failed else torch.cholesky_solve(total.T, factor).T
