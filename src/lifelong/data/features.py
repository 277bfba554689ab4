"""What a trunk that stays makes of a data set: computed once, and kept on disk with the decoded data."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lifelong.data import cache
from lifelong.data.dataset import Dataset, Samples

_BATCH = 512
_TOLD_EVERY = 10.0  # seconds

_log = logging.getLogger(__name__)


def features(dataset: Dataset, extract: Callable[[Tensor], Tensor], trunk: str) -> Dataset:
    """Return `dataset` with features in the place of its inputs.

    Args:
        dataset: labels and order stay.
        extract: makes features `[batch, width]` of inputs `[batch, ...]` as they are stored.
        trunk: digest of all that `extract` depends on.
    """
    key = hashlib.blake2b(f"features {dataset.fingerprint} {trunk}".encode(), digest_size=16).hexdigest()

    def compute() -> Dataset:
        name, parts = dataset.name, (dataset.train, dataset.test)
        _log.info("%s: computing the features of %d samples, once", name, sum(len(each.targets) for each in parts))
        train, test = (Samples(_all(extract, each.inputs, name), each.targets) for each in parts)
        return replace(dataset, train=train, test=test, fingerprint=key)

    return replace(cache.cached(key, compute), name=dataset.name)


@torch.no_grad()
def _all(extract: Callable[[Tensor], Tensor], inputs: Tensor, name: str) -> Tensor:
    made, told = list[Tensor](), time.monotonic()
    for batch in inputs.split(_BATCH):
        made.append(extract(batch).float().cpu())
        if time.monotonic() - told >= _TOLD_EVERY:
            told = time.monotonic()
            _log.info("%s: features of %d of %d samples", name, sum(map(len, made)), len(inputs))
    return torch.cat(made)
