"""Random projections and ridge regression on pretrained features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
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
_BLOCK = (
    128  # columns of a Gram matrix at a time: less above the diagonal is worked out in vain, and products are large
)


@dataclass
class RanPAC(StreamingClassifier):
    """Ridge regression of one-hot labels on `h = relu(z P)`, with P random and never trained.

    `W = (G + ridge I)^-1 C` with `G = sum_n h_n h_n^T`, `C = sum_n h_n y_n^T` and P of standard normal numbers drawn by
    the seed (McDonnell et al. 2023, 2307.02251, section 4, and the authors' code). By default ridge is that of 10^-8,
    10^-7 .. 10^8 with the least squared error on a fifth of the samples when solved on the others; then all are used.

    Our deviations: the authors hold out the last fifth of the newest task alone. Here the samples held out are told by
    a checksum of their inputs, in all tasks, and have sums of their own, so that neither order nor task enters the
    choice. The adapters of the paper's first session are not there: `learn_first` trains the whole trunk. Memory is
    `8 width^2` bytes, as the Gram matrices of both parts are triangles of one.
    """

    paper: ClassVar[str] = "2307.02251"

    width: int = setting(1000, "random features; the paper has 10000 over those of a pretrained transformer", ge=1)
    ridge: float | None = setting(None, "strength of the ridge, above 0; chosen on held-out samples by default", gt=0)
    held: Sums = state(Sums)
    grams: Tensor = state(lambda: torch.zeros(0, 0, dtype=torch.float64))
    projection: Tensor | None = transient(lambda: None)

    def embed(self, learner: Learner, features: Tensor) -> Tensor:
        wide = exact(features.device)
        if self.projection is None:
            drawn = randomness.generator(learner.seed, "projection")
            self.projection = torch.randn(features.shape[1], self.width, generator=drawn).to(features.device, wide)
        return (features.to(wide) @ self.projection).relu_()

    def collect(self, inputs: Tensor, embedded: Tensor, labels: Tensor, classes: int) -> None:
        self.sums.add(embedded, labels, classes, gram=self.ridge is not None)
        if self.ridge is None:
            chosen = checksum(inputs) % _HELD == 0
            held = embedded[chosen]
            self.held.add(held, labels[chosen], classes, gram=False)
            if len(self.grams) == 0:
                self.grams = embedded.new_zeros(self.width + 1, self.width)
            add_grams(self.grams, embedded[~chosen], held)

    def solve(self) -> tuple[Tensor, Tensor]:
        if self.ridge is not None:
            gram, ridge = self.sums.gram, self.ridge
        else:
            fitted, held = both_grams(self.grams)
            ridge = _best(fitted, self.sums.total - self.held.total, held, self.held.total)
            gram = fitted.add_(held)
        weight = _solve(gram, self.sums.total, ridge)
        if weight is None:
            raise InputError(f"ridge = {ridge} is lost in the rounding of sums over the features: choose a larger one")
        return weight, weight.new_zeros(len(weight))


def add_grams(grams: Tensor, fitted: Tensor, held: Tensor) -> None:
    """Add `fitted^T fitted` to `grams` below its diagonal, and `held^T held` above and on it, in place.

    Of a symmetric matrix one triangle tells all, so that two fit into `[width + 1, width]`, in half of the memory and
    of the products.

    Args:
        grams: `[width + 1, width]`; row i + 1 begins with row i of the first matrix, row i ends as that of the second.
        fitted, held: `[batch, width]`, either of which may be empty.
    """
    width = grams.shape[1]
    for start in range(0, width, _BLOCK):
        end = min(start + _BLOCK, width)
        grams[start + 1 : end + 1, :end].add_((fitted[:, start:end].T @ fitted[:, :end]).tril_(start))
        grams[start:end, start:].add_((held[:, start:end].T @ held[:, start:]).triu_())


def both_grams(grams: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two symmetric matrices `[width, width]` that `add_grams` keeps in one, as new tensors."""
    below, above = grams[1:].tril(), grams[:-1].triu()
    return below + below.tril(-1).T, above + above.triu(1).T


def checksum(inputs: Tensor) -> Tensor:
    """Return a number `[batch]` int64 for each of `inputs` `[batch, ...]` that depends on its bits and nothing else."""
    # Integers, because a sum of reals depends on how a batch is cut; overflow wraps around and does no harm.
    words = (inputs if inputs.element_size() >= 4 else inputs.float()).flatten(1).contiguous().view(torch.int32)
    drawn = torch.randint(2**31, (words.shape[1],), generator=randomness.generator(0, "checksum"), dtype=torch.int32)
    return (words * drawn.to(words.device)).sum(1)


def _best(gram: Tensor, total: Tensor, held_gram: Tensor, held_total: Tensor) -> float:
    """Return the ridge of least squared error on held-out samples, where solved on `gram` and `total` of the others."""
    best, least = RIDGES[0], torch.inf
    for ridge, weight in _solutions(gram, total):
        # ||H W - Y||^2 over the held-out samples, less ||Y||^2, which is the same for all.
        error = float((weight @ held_gram * weight).sum() - 2 * (weight * held_total).sum())
        if error < least:
            best, least = ridge, error
    return best


def _solutions(gram: Tensor, total: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Yield `((gram + ridge I)^-1 total^T)^T` for each of `RIDGES` that rounding does not swallow.

    With `gram = Q T Q^T` and T tridiagonal each ridge costs only two products with Q: at a width of 1000 all of them
    take the time of a few Cholesky factors. An accelerator factors faster than it could hand the matrix over.
    """
    if gram.device.type != "cpu" or len(gram) == 1:  # which has no reflector
        for ridge in RIDGES:
            weight = _solve(gram, total, ridge)
            if weight is None:
                return
            yield ridge, weight
        return
    # Imported here: it takes a third of a second, which other methods need not wait for.
    from scipy.linalg import lapack

    reduced, diagonal, beside, factors, _ = lapack.dsytrd(gram.numpy(), lower=1, lwork=64 * len(gram))
    # The reflectors that Q is made of lie below the diagonal of T, as those of a QR factorisation of one row less.
    reflectors = np.asfortranarray(reduced[1:, :-1])
    rotated = total.T.numpy().copy(order="F")
    space = 64 * max(1, rotated.shape[1])
    rotated[1:] = lapack.dormqr("L", "T", reflectors, factors, rotated[1:], space)[0]
    for ridge in RIDGES:
        _, _, solved, failed = lapack.dptsv(diagonal + ridge, beside, rotated)
        if failed:
            return
        solved[1:] = lapack.dormqr("L", "N", reflectors, factors, solved[1:], space)[0]
        yield ridge, torch.from_numpy(np.ascontiguousarray(solved.T))


def _solve(gram: Tensor, total: Tensor, ridge: float) -> Tensor | None:
    """Return `((gram + ridge I)^-1 total^T)^T`, or None where rounding has left the matrix not positive definite."""
    damped = gram.clone()
    damped.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(damped)
    return None if failed else torch.cholesky_solve(total.T, factor).T
