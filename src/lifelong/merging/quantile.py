"""The exact k-th largest magnitude of a tensor that is seen block by block.

A sample brackets it; a pass over the blocks counts what lies above the bracket and keeps what lies in it; the answer is
among these. Nothing the size of the tensor is ever sorted or stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lifelong.merging.rule import BLOCK, Array, Site, Stack, as_numpy

# Standard deviations of the sample's count by which the bracket reaches beyond the rank that is looked for.
_WIDTH = 3.5

Numbers = np.ndarray[Any, Any]
Magnitudes = Callable[[Array | None, list[Array]], Sequence[Array]]


def cuts(stack: Stack | Sequence[Stack], magnitudes: Magnitudes, keep: Sequence[int]) -> list[float]:
    """Return, for each kind of magnitude, the k-th largest over the tensor.

    Args:
        stack: the tensor; or several, taken as one.
        magnitudes: of one block of the base and the experts, one array for each kind (for instance one an expert), all
            at least 0.
        keep: k for each kind; 0 gives infinity, more than the size of the tensor gives 0.

    Returns:
        The least magnitude that is kept: those at least as large are k, or more where several are equal to it.
    """
    stacks = [stack] if isinstance(stack, Stack) else stack
    size = sum(each.size for each in stacks)
    found = {kind: math.inf if k <= 0 else 0.0 for kind, k in enumerate(keep) if not 0 < k <= size}

    def numbers(base: Array | None, experts: list[Array]) -> list[Numbers]:
        return [as_numpy(each) for each in magnitudes(base, experts)]

    sample = _sample(stacks, numbers, size) if len(found) < len(keep) else []
    width = _WIDTH
    while len(found) < len(keep):
        brackets = {kind: _bracket(sample[kind], k, size, width) for kind, k in enumerate(keep) if kind not in found}

        def look(place: tuple[int, Site]) -> dict[int, tuple[int, Numbers]]:
            index, site = place
            every = numbers(*stacks[index].read(site))
            return {kind: _within(every[kind], *bracket) for kind, bracket in brackets.items()}  # noqa: B023

        seen = stacks[0].mapper(look, _places(stacks))
        for kind, bracket in brackets.items():
            cut = _cut([block[kind] for block in seen], keep[kind], bracket[0])
            if cut is not None:
                found[kind] = cut
        # Where the sample misled, another pass with a wider bracket finds it; in the end it spans everything.
        width *= 4
    return [found[kind] for kind in range(len(keep))]


def _sample(stacks: Sequence[Stack], numbers: Callable[..., list[Numbers]], size: int) -> list[Numbers]:
    """Return some numbers of each kind, sorted: from all over the tensors, as rows and columns differ."""
    # The sample is sorted, and what its bracket holds is taken out and sorted: this step makes the sum of both least.
    # An odd one shares no factor with most widths of layers, or the sample would be of a few columns.
    step = int(size ** (1 / 3) / 2) | 1

    def of_place(place: tuple[int, Site]) -> list[Numbers]:
        index, site = place
        stop = min(site.start + BLOCK, stacks[index].size)
        return numbers(*stacks[index].between(min(-(-site.start // step) * step, stop), stop, step))

    found = stacks[0].mapper(of_place, _places(stacks))
    return [np.sort(np.concatenate(kind)) for kind in zip(*found, strict=True)]


def _places(stacks: Sequence[Stack]) -> list[tuple[int, Site]]:
    """Return all blocks of all tensors, by the index of the tensor."""
    return [(index, site) for index, each in enumerate(stacks) for site in each.sites()]


def _bracket(ordered: Numbers, k: int, size: int, width: float) -> tuple[float, float]:
    """Return limits that the k-th largest of `size` numbers very probably lies between, from a sorted sample."""
    share = 1 - k / size
    spread = width * math.sqrt(share * (1 - share) * ordered.size) + 1
    low, high = math.floor(share * ordered.size - spread), math.ceil(share * ordered.size + spread)
    return (
        float(ordered[low]) if low >= 0 else 0.0,
        float(ordered[high]) if high < ordered.size else math.inf,
    )


def _within(values: Numbers, low: float, high: float) -> tuple[int, Numbers]:
    """Return how many of `values` are above `high`, and those from `low` to `high`; of these no zeros."""
    above = values > high
    inside = values >= low if low > 0 else values > 0
    inside ^= above
    # On such masks `compress` takes less time than indexing.
    return int(np.count_nonzero(above)), values.compress(inside)


def _cut(seen: Sequence[tuple[int, Numbers]], k: int, low: float) -> float | None:
    """Return the k-th largest, or None where it is not in the bracket that begins at `low`."""
    rank = k - sum(count for count, _ in seen)
    inside = np.concatenate([values for _, values in seen])
    if rank > inside.size and low == 0:
        return 0.0  # all that are not 0 are fewer than k
    if not 0 < rank <= inside.size:
        return None
    # Sorted, as coarse formats have many equal numbers: these make partitioning four times as slow as sorting.
    inside.sort()
    return float(inside[inside.size - rank])
