"""Dropping by magnitude: the larger a change is in its row, the likelier it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lifelong.errors import InputError
from lifelong.merging.draws import LEVELS, draws
from lifelong.merging.rule import BLOCK, Array, Site, Stack, as_numpy, like, name_of
from lifelong.merging.rules.sparsified import Sparsified
from lifelong.settings import setting

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class DELLALinear(Sparsified):
    """Add task vectors of which numbers are kept with probabilities that rise with their rank in the row.

    Deep et al. 2024, 2406.11617: `p = density - epsilon + 2 epsilon (r - 1) / (m - 1)` for rank r, by magnitude, of the
    m numbers of a row. A row is what feeds one output: the first axis counts them, and a tensor of one axis is a single
    row; a row of one number has `p = density`. Kept numbers are rescaled so that the L1 norm of the tensor stays, as in
    mergekit; `rescale_norm` expectation divides each by its p, as the paper does. Draws are DARE's.
    """

    paper: ClassVar[str] = "2406.11617"
    symmetric: ClassVar[bool] = False
    random: ClassVar[bool] = True
    per_expert: ClassVar[tuple[str, ...]] = ("weight", "density", "epsilon")

    rescale: bool = setting(True, "make up for what was dropped")
    epsilon: float | tuple[float, ...] = setting(0.15, "p spans density - epsilon to density + epsilon", ge=0, lt=0.5)
    seed: int = setting(0, "of the draws", ge=0, lt=2**63)

    def check(self, experts: int) -> None:
        super().check(experts)
        for density, epsilon in zip(self.each("density", experts), self.each("epsilon", experts), strict=True):
            if 0 < density < 1 and not epsilon < density < 1 - epsilon:
                raise InputError(
                    f"rule {name_of(self)}: density {density} with epsilon {epsilon} gives probabilities outside 0 to 1"
                )

    def limits(self, stack: Stack) -> list[Numbers | None]:
        """Return, for each number of each expert, its probability in 65536ths where it is kept, else 0; None: all."""
        densities = [self.of_expert("density", place) for place in stack.places]
        epsilons = [self.of_expert("epsilon", place) for place in stack.places]
        width = stack.size // stack.shape[0] if len(stack.shape) > 1 else stack.size
        # Whole rows, about a block of them at a time.
        step = width * max(1, BLOCK // width)
        sites = [Site(stack.name, start) for start in range(0, stack.size, step)]

        def of_rows(site: Site) -> Numbers:
            stop = min(site.start + step, stack.size)
            assert stack.base is not None
            base = stack.base.read(site.start, stop)
            found = np.zeros((len(densities), stop - site.start), np.uint16)
            every = zip(found, stack.experts, stack.places, densities, epsilons, strict=True)
            for kept, values, place, density, epsilon in every:
                if 0 < density < 1:
                    magnitude = np.abs(as_numpy(values.read(site.start, stop) - base)).reshape(-1, width)
                    levels = _levels(magnitude, density, epsilon).reshape(-1)
                    kept[:] = levels * (draws(self.seed, site, place, levels.size) < levels)
            return found

        found = np.concatenate(stack.mapper(of_rows, sites), axis=1)
        return [None if density == 1 else kept for kept, density in zip(found, densities, strict=True)]

    def sparsify(self, vector: Array, limit: Any, site: Site) -> None:
        if limit is None:
            return
        kept = limit[site.start : site.start + len(vector)]
        vector *= like(kept > 0, vector)
        if self.keeps_expectation:
            vector *= like((LEVELS / np.maximum(kept, 1)).astype(as_numpy(vector).dtype), vector)


@dataclass(frozen=True)
class DELLA(DELLALinear):
    """DELLA, averaged where numbers agree with the elected sign, as TIES does."""

    elects: ClassVar[bool] = True

    normalize: bool = setting(True, "divide by the weights of the experts that agree")


def _levels(magnitude: Numbers, density: float, epsilon: float) -> Numbers:
    """Return the probability with which each number of some rows is kept, in 65536ths."""
    width = magnitude.shape[1]
    rank = np.empty(magnitude.shape, np.int64)
    np.put_along_axis(rank, np.argsort(magnitude, axis=1, kind="stable"), np.arange(width)[None, :], axis=1)
    share = rank / (width - 1) if width > 1 else np.full(magnitude.shape, 0.5)
    return np.rint((density - epsilon + 2 * epsilon * share) * LEVELS).clip(1, LEVELS - 1).astype(np.uint16)
