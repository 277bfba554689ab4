"""One seed in, the same bits out: independent random streams derived from a seed and a path of names."""

from __future__ import annotations

import numpy as np
import torch


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed for the purpose named by `path`, independent of the seeds of all other purposes.

    The position in a run is thus the whole state of its data order: nothing needs to be saved for resuming.
    """
    words = [seed, *(int.from_bytes(str(part).encode(), "little") for part in path)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Return a CPU generator seeded by `derive(seed, *path)`; CPU, so that every device draws the same numbers."""
    return torch.Generator().manual_seed(derive(seed, *path))


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """Return a NumPy generator seeded by `derive(seed, *path)`, for draws that are made one by one."""
    return np.random.default_rng(derive(seed, *path))
