"""Inner products between the vectors of a merge, over a whole tensor or over each of its rows or columns.

Spherical rules need no more of a tensor than these: what they return lies in the span of what they were given, so that
all their geometry happens among a few coefficients, and the numbers themselves are only added up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lifelong.merging.rule import Array, Site, Stack, as_numpy, like

Numbers = np.ndarray[Any, Any]
Vectors = Callable[[Array | None, list[Array]], list[Array]]

# Numbers of an inner product that no library shares among threads.
_SHORT = 1024


@dataclass(frozen=True)
class Lines:
    """How the numbers of a flattened tensor fall into vectors.

    Args:
        count: of the vectors.
        width: numbers from one row to the next.
        rows: a vector is a run of `width` numbers; else it takes every `width`-th number.
    """

    count: int
    width: int
    rows: bool

    def of(self, start: int, length: int) -> Numbers:
        """Return which vector each of `length` numbers from `start` on is in."""
        places = np.arange(start, start + length)
        return places // self.width if self.rows else places % self.width


def lines(shape: tuple[int, ...], kind: Literal["tensor", "rows", "columns"]) -> Lines:
    """Return the vectors of a tensor of `shape`: itself, those along its last axis, or those along its first.

    A tensor of fewer than two axes is one vector.
    """
    size = math.prod(shape)
    if kind == "tensor" or len(shape) < 2:
        return Lines(1, max(1, size), True)
    if kind == "rows":
        return Lines(size // shape[-1], shape[-1], True)
    return Lines(size // shape[0], size // shape[0], False)


def gram(stack: Stack, vectors: Vectors, over: Lines) -> Numbers:
    """Return `<v_s, v_t>`, `[lines, vectors, vectors]`: sums in float64, within blocks and then in their order.

    Without large matrix products: how these add depends on the number of threads, and the same merge must give the same
    bytes with any.

    Args:
        stack: the tensor, not empty.
        vectors: those of one block.
        over: which numbers belong to one vector.
    """

    def of_block(base: Array | None, experts: list[Array], site: Site) -> tuple[int, Numbers]:
        found = [as_numpy(each).astype(np.float64) for each in vectors(base, experts)]
        pairs = [(s, t) for s in range(len(found)) for t in range(s + 1)]
        if over.count == 1:
            return 0, np.array([[_inner(found[s], found[t]) for s, t in pairs]])
        index = over.of(site.start, len(found[0]))
        first = int(index.min())
        index -= first
        return first, np.stack([np.bincount(index, found[s] * found[t]) for s, t in pairs], axis=-1)

    blocks = stack.map(of_block)
    total = np.zeros((over.count, blocks[0][1].shape[1]))
    for first, sums in blocks:
        total[first : first + len(sums)] += sums
    count = math.isqrt(2 * total.shape[1])
    products = np.zeros((over.count, count, count))
    below = np.tril_indices(count)
    products[:, below[0], below[1]] = total
    products[:, below[1], below[0]] = total
    return products


def _inner(x: Numbers, y: Numbers) -> Any:
    """Return `<x, y>` as the sum of short products, half the time of one that does without BLAS."""
    whole = len(x) - len(x) % _SHORT
    runs = np.matmul(x[:whole].reshape(-1, 1, _SHORT), y[:whole].reshape(-1, _SHORT, 1))
    return runs.sum() + x[whole:] @ y[whole:]


def spread(coefficients: Numbers, over: Lines, site: Site, array: Array) -> list[Any]:
    """Return the coefficient of each vector for the numbers of one block: one number, or an array like `array`.

    Args:
        coefficients: `[lines, vectors]`.
        over: which numbers belong to one line.
        site: where the block lies.
        array: the block.
    """
    if over.count == 1:
        return [float(each) for each in coefficients[0]]
    index = over.of(site.start, len(array))
    return [like(column[index].astype(as_numpy(array).dtype), array) for column in coefficients.T]


def cosine(products: Numbers, s: int, t: int) -> Numbers:
    """Return the cosine of the angle between vectors `s` and `t`, `[lines]`; 0 where one of them is 0."""
    norms = np.sqrt(products[:, s, s]) * np.sqrt(products[:, t, t])
    return np.clip(products[:, s, t] / np.where(norms > 0, norms, 1), -1, 1)
