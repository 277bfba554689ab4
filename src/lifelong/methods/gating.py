"""Fixed random gates: which units of each layer answer in a context, a task or a class."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lifelong import randomness


def drawn(seed: int, context: int, layers: Iterable[int], silent: float) -> list[Tensor]:
    """Return the gates `[units]` of each layer, 0 or 1: a function of seed and context, so nobody has to keep them.

    Args:
        seed: of the learner.
        context: its index.
        layers: numbers of units.
        silent: share of each layer's units whose gate is 0, below 1; at least one unit answers, however few there are.
    """
    generator = randomness.generator(seed, "gates", context)
    found = []
    for units in layers:
        gate = torch.ones(units)
        gate[torch.randperm(units, generator=generator)[: min(round(silent * units), units - 1)]] = 0
        found.append(gate)
    return found
