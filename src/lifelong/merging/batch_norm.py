"""Statistics of batch normalisation, estimated anew: those of a merge describe no network's activations."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lifelong.curvature.per_sample import evaluating
from lifelong.errors import InputError


def reestimate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every batch normalisation by their means over `batches`, in place.

    Averaged weights give activations of another mean and variance than either average of the experts' statistics; the
    same step follows stochastic weight averaging (Izmailov et al. 2018, 1803.05407). Say on which data it was done.

    Args:
        model: nothing but running statistics changes; dropout is off.
        batches: inputs, as the merged model will get them: of all tasks, mixed; every batch has the same weight.

    Raises:
        InputError: no batches for a model with batch normalisation.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    given = list(batches)
    if not given:
        raise InputError("give at least one batch to estimate the statistics of batch normalisation on")
    try:
        with evaluating(model), torch.no_grad():
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # PyTorch's word for the mean over all batches
                layer.train()
            for inputs in given:
                model(inputs)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
