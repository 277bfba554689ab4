"""The exact k-th largest magnitude of a tensor that is seen block by block.

A sample brackets it; a pass over the blocks counts what lies above the bracket and keeps what lies in it; the answer is
among these. Nothing the size of the tensor is ever sorted or stored.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lifelong.merging.rule import Array, Site, Stack

# Standard deviations of the sample's count by which the bracket reaches beyond the rank that is looked for.
_WIDTH = 5.0

Numbers = np.ndarray[Any, Any]
Magnitudes = Callable[[Array | None, list[Array]], Sequence[Array]]


def cuts(stack: Stack, magnitudes: Magnitudes, keep: Sequence[int]) -> list[float]:
    """Return, for each kind of magnitude, the k-th largest over the tensor.

    Args:
        stack: the tensor.
        magnitudes: of one block of the base and the experts, one array for each kind (for instance one an expert), all
            at least 0.
        keep: k for each kind; 0 gives infinity, the size of the tensor or more gives 0.

    Returns:
        The least magnitude that is kept: those at least as large are k, or more where several are equal to it.
    """

    def numbers(base: Array | None, experts: list[Array]) -> list[Numbers]:
        return [_numpy(each) for each in magnitudes(base, experts)]

    sample = _sample(stack, numbers, len(keep))
    brackets = [_bracket(each, k, stack.size) for each, k in zip(sample, keep, strict=True)]

    def look(base: Array | None, experts: list[Array], site: Site) -> list[tuple[int, Numbers]]:
        return [_within(each, *bracket) for each, bracket in zip(numbers(base, experts), brackets, strict=True)]

    seen = stack.map(look)
    return [
        _cut([block[kind] for block in seen], k, stack.size, functools.partial(_all, stack, numbers, kind))
        for kind, k in enumerate(keep)
    ]


def _numpy(array: Array) -> Numbers:
    return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()


def _sample(stack: Stack, numbers: Callable[..., list[Numbers]], kinds: int) -> list[Numbers]:
    """Return some numbers of each kind: all of a small tensor, else strided ones of blocks that lie evenly in it."""
    sites = stack.sites()
    chosen = sites[:: max(1, len(sites) // 16)]
    # The sample is sorted, and so is what its bracket holds: this size makes both cheap beside the pass.
    share = max(1, math.ceil(stack.size ** (2 / 3) / max(1, len(chosen))))

    def some(site: Site) -> list[Numbers]:
        # A stride that shares no factor with the widths of layers, or a sample would be of a few columns.
        return [each[:: max(1, (len(each) // share) | 1)] for each in numbers(*stack.read(site))]

    found = [some(site) for site in chosen]
    return [np.sort(np.concatenate([each[kind] for each in found])) if found else np.empty(0) for kind in range(kinds)]


def _bracket(ordered: Numbers, k: int, size: int) -> tuple[float, float]:
    """Return limits that the k-th largest of `size` numbers very probably lies between, from a sorted sample."""
    if k <= 0 or k >= size or ordered.size == 0:
        return math.inf, math.inf
    share = 1 - k / size
    spread = _WIDTH * math.sqrt(share * (1 - share) * ordered.size) + 1
    low, high = math.floor(share * ordered.size - spread), math.ceil(share * ordered.size + spread)
    return (
        float(ordered[low]) if low >= 0 else 0.0,
        float(ordered[high]) if high < ordered.size else math.inf,
    )


def _within(values: Numbers, low: float, high: float) -> tuple[int, Numbers]:
    """Return how many of `values` are above `high`, and those from `low` to `high`."""
    above = values > high
    count = int(np.count_nonzero(above))
    if low == high == math.inf:
        return count, values[:0]
    return count, values[np.flatnonzero((values >= low) ^ above)]


def _cut(seen: Sequence[tuple[int, Numbers]], k: int, size: int, everything: Callable[[], Numbers]) -> float:
    if k <= 0:
        return math.inf
    if k >= size:
        return 0.0
    rank = k - sum(count for count, _ in seen)
    inside = np.concatenate([values for _, values in seen])
    if not 0 < rank <= inside.size:
        # The sample misled: not probable, and then exactness costs a whole tensor once.
        inside, rank = everything(), k
    return float(np.partition(inside, inside.size - rank)[inside.size - rank])


def _all(stack: Stack, numbers: Callable[..., list[Numbers]], kind: int) -> Numbers:
    return np.concatenate(stack.map(lambda base, experts, site: numbers(base, experts)[kind]))
