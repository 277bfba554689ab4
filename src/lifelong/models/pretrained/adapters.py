"""Adapters of low rank (LoRA) within a network, by peft: added, and folded into the weights that they change."""

from __future__ import annotations

import torch
from torch import nn

from lifelong import tree
from lifelong.errors import InputError, closest
from lifelong.models.pretrained.settings import Pretrained
from lifelong.models.pretrained.sources import library
from lifelong.tree import Params

_NAME = "default"


def add_adapters(module: nn.Module, chosen: Pretrained) -> None:
    """Give layers of `module` an adapter each, and freeze all else: `W + alpha/rank B A`, B being 0 at first.

    Hu et al. 2021, 2106.09685, eq. 3. A is drawn from torch's global generator.

    Raises:
        InputError: no layer has such a name, or one of them cannot have an adapter.
    """
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    targets = linear if chosen.adapted is None else list(chosen.adapted)
    names = [name for name, _ in module.named_modules() if name]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            near = closest(target, {name.rpartition(".")[2] for name in names})
            raise InputError(f"model.adapted: no layer's name ends with {target!r}{near or f', such as {names[-1]!r}'}")
    if not targets:
        raise InputError(
            "model.learn lora adapts linear layers, and the network has none: name layers with model.adapted"
        )
    peft = library("peft", "'lifelong[hf]'")
    config = peft.LoraConfig(r=chosen.rank, lora_alpha=chosen.alpha, target_modules=targets)
    try:
        peft.inject_adapter_in_model(config, module, adapter_name=_NAME)
    except ValueError as error:
        raise InputError(f"model.adapted: {str(error).splitlines()[0]}") from error


def adapted_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of `module` that have an adapter, by the name of what it changes: `LAYER.base_layer`."""
    names = [name.removesuffix(".lora_A") for name, _ in module.named_modules() if name.endswith(".lora_A")]
    return {f"{name}.base_layer": module.get_submodule(name) for name in names}


def mergeable(module: nn.Module) -> Params:
    """Return the live weights of `module` that rules merge: those that adapters change, or else those that learn.

    A and B by themselves are not to be merged: the product of two means is no mean of products.
    """
    live = dict(module.named_parameters())
    return {f"{name}.weight": live[f"{name}.weight"] for name in adapted_layers(module)} or tree.parameters(module)


@torch.no_grad()
def fold(module: nn.Module) -> None:
    """Make what the adapters of `module` change part of its weights, and draw them anew: they change nothing then."""
    for layer in adapted_layers(module).values():
        layer.base_layer.weight += layer.get_delta_weight(_NAME)  # type: ignore[operator,union-attr]
        layer.reset_lora_parameters(_NAME, init_lora_weights=True)  # type: ignore[operator]
