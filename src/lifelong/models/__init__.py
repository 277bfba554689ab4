"""Networks that learn, and the explicit dict of those that the command line knows."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from lifelong import randomness, settings
from lifelong.errors import InputError, unknown
from lifelong.models.network import HeadKind, Network, with_head, without_head
from lifelong.models.networks import MLP, ConvNet

MODELS: dict[str, type[MLP] | type[ConvNet]] = {"mlp": MLP, "convnet": ConvNet}

__all__ = ["MLP", "MODELS", "ConvNet", "HeadKind", "Network", "trunk", "with_head", "without_head"]


def trunk(name: str, values: dict[str, Any], shape: tuple[int, ...], seed: int) -> nn.Module:
    """Return the freshly initialised trunk called `name`.

    Args:
        name: a key of `MODELS`, or `package.module:function` (called without arguments, returns a classifier whose
            last linear layer is taken off, or the one that the setting `head_name` names).
        values: the settings of the model.
        shape: of one input.
        seed: of the initial weights.

    Raises:
        InputError: an unknown model or setting, or a function that cannot be imported.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive(seed, "model"))
        if ":" in name:
            return without_head(_imported(name), values.get("head_name"))
        if name not in MODELS:
            raise unknown("model", name, MODELS)
        return settings.build(MODELS[name], values, f"model {name}").trunk(shape)


def _imported(name: str) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), function_name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"model {name!r} cannot be imported: {error}") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"model {name!r} returned a {type(made).__name__}, and a torch.nn.Module is needed")
    return made
