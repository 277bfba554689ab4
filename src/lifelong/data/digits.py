"""The embedded data set: small, real, and there without a network."""

from __future__ import annotations

import torch

from lifelong.data.dataset import Dataset, divided, from_tensors


def digits() -> Dataset:
    """Return scikit-learn's handwritten digits as `[samples, 1, 8, 8]` uint8, a fifth of each class for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Sixteen grey levels, spread over the whole range of a byte.
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    train, test = divided(images, torch.from_numpy(bunch.target).to(torch.int64))
    return from_tensors(train, test, name="digits")
