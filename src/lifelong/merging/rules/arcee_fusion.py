"""Take from another model the changes that stand out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lifelong.merging.rule import BLOCK, Array, Rule, Site, as_numpy, choose, like

Numbers = np.ndarray[Any, Any]
_FLOOR = 1e-8


@dataclass(frozen=True)
class ArceeFusion(Rule):
    """Take the expert's number where its importance is at least the median plus 1.5 times the interquartile range.

    mergekit's method of that name. The importance of a number is `|tau| KL(p || q)`, p and q the softmax of its row, in
    the expert and in the base: rows are along the last axis, and 1e-8 is added to every probability. Quartiles are
    those of the whole tensor; mergekit's are of a random million of its numbers.
    """

    family: ClassVar[str] = "task vectors"
    needs_base: ClassVar[bool] = True
    most: ClassVar[int | None] = 1
    blockwise: ClassVar[bool] = False

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        (expert,) = experts
        # In NumPy for every library: exponentials and logarithms round differently in each.
        new, old = as_numpy(expert), as_numpy(base)
        width = new.shape[-1] if new.ndim else 1
        rows, origin = new.reshape(-1, width), old.reshape(-1, width)
        importance = np.abs(rows - origin)
        step = max(1, BLOCK // width)
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            importance[part] *= _divergence(rows[part], origin[part])
        last = importance.size - 1
        quarter, half, three = int(0.25 * last), int(0.5 * last), int(0.75 * last)
        ordered = np.partition(importance, (quarter, half, three), axis=None)
        # In float64, or not at all the quartiles' own numbers would pass.
        limit = float(ordered[half]) + 1.5 * (float(ordered[three]) - float(ordered[quarter]))
        return choose(like((importance >= limit).reshape(new.shape), expert), expert, base)


def _divergence(new: Numbers, old: Numbers) -> Numbers:
    """Return `KL(p || q)` of each row, `[rows, 1]`, in float64."""
    p, q = _softmax(new) + _FLOOR, _softmax(old) + _FLOOR
    return np.asarray((p * np.log(p / q)).sum(axis=-1, keepdims=True))


def _softmax(rows: Numbers) -> Numbers:
    exponentials = np.exp(rows.astype(np.float64) - rows.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))
