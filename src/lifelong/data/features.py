"""What a trunk that stays makes of a data set: computed once, and kept on disk with the decoded data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lifelong.data import cache
from lifelong.data.dataset import Dataset, Samples

_BATCH = 512


def features(dataset: Dataset, extract: Callable[[Tensor], Tensor], trunk: str) -> Dataset:
    """Return `dataset` with features in the place of its inputs.

    Args:
        dataset: labels and order stay.
        extract: makes features `[batch, width]` of inputs `[batch, ...]` as they are stored.
        trunk: digest of all that `extract` depends on.
    """
    key = hashlib.blake2b(f"features {dataset.fingerprint} {trunk}".encode(), digest_size=16).hexdigest()

    def compute() -> Dataset:
        parts = [Samples(_all(extract, part.inputs), part.targets) for part in (dataset.train, dataset.test)]
        return replace(dataset, train=parts[0], test=parts[1], fingerprint=key)

    return replace(cache.cached(key, compute), name=dataset.name)


def _all(extract: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([extract(batch).float().cpu() for batch in inputs.split(_BATCH)])
