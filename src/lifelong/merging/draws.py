"""Random numbers that hang on where they are used, and on nothing else.

A block's draws follow from the seed, the tensor's name, the expert and the place of the block: they are the same
whichever worker makes them, in whatever order, for arrays of NumPy and of PyTorch, and after an interruption.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from xxhash import xxh3_128_intdigest

from lifelong.merging.rule import Site

# Draws are integers below this. Sixteen bits cost a fifth of what a float does, where dropping is mostly drawing; a
# probability is then rounded to a multiple of 1/65536.
LEVELS = 1 << 16


def draws(seed: int, site: Site, expert: int, count: int) -> np.ndarray[Any, Any]:
    """Return `count` integers, uniform from 0 to below `LEVELS`, for the numbers of one expert from `site.start` on."""
    key = xxh3_128_intdigest(f"{seed} {expert} {site.start} {site.name}".encode())
    words = np.random.SFC64(key).random_raw(-(-count // 4))
    return words.astype("<u8", copy=False).view("<u2")[:count]
