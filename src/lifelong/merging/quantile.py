"""The exact k-th largest magnitude of a tensor that is seen block by block.

A sample brackets it; a pass over the blocks counts what lies above the bracket and keeps what lies in it; the answer is
among these. Nothing the size of the tensor is ever sorted or stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lifelong.merging.rule import Array, Site, Stack, as_numpy

# Standard deviations of the sample's count by which the bracket reaches beyond the rank that is looked for.
_WIDTH = 5.0

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

        def look(base: Array | None, experts: list[Array], site: Site) -> dict[int, tuple[int, Numbers]]:
            every = numbers(base, experts)
            return {kind: _within(every[kind], *bracket) for kind, bracket in brackets.items()}  # noqa: B023

        seen = [block for each in stacks for block in each.map(look)]
        for kind, bracket in brackets.items():
            cut = _cut([block[kind] for block in seen], keep[kind])
            if cut is None and bracket == (0.0, math.inf):
                cut = 0.0  # fewer numbers than k: the others are none
            if cut is not None:
                found[kind] = cut
        # Where the sample misled, another pass with a wider bracket finds it; in the end it spans everything.
        width *= 4
    return [found[kind] for kind in range(len(keep))]


def _sample(stacks: Sequence[Stack], numbers: Callable[..., list[Numbers]], size: int) -> list[Numbers]:
    """Return some numbers of each kind, sorted: all of small tensors, else strided ones of blocks evenly in them."""
    # The sample is sorted, and so is what its bracket holds: this share makes both cheap beside the pass.
    share = size ** (-1 / 3)
    found = []
    for stack in stacks:
        sites = stack.sites()
        chosen = sites[:: max(1, len(sites) // 16)]
        wanted = max(1, math.ceil(stack.size * share / max(1, len(chosen))))
        for site in chosen:
            # A stride that shares no factor with the widths of layers, or a sample would be of a few columns.
            found.append([each[:: max(1, (len(each) // wanted) | 1)] for each in numbers(*stack.read(site))])
    return [np.sort(np.concatenate(kind)) for kind in zip(*found, strict=True)]


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
    """Return how many of `values` are above `high`, and those from `low` to `high`."""
    above = values > high
    return int(np.count_nonzero(above)), values[np.flatnonzero((values >= low) ^ above)]


def _cut(seen: Sequence[tuple[int, Numbers]], k: int) -> float | None:
    """Return the k-th largest, or None where it is not in the bracket."""
    rank = k - sum(count for count, _ in seen)
    inside = np.concatenate([values for _, values in seen])
    if not 0 < rank <= inside.size:
        return None
    return float(np.partition(inside, inside.size - rank)[inside.size - rank])
