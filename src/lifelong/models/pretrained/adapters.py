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
        kinds = {
            f"{name} ({type(layer).__name__})"
            for name, layer in module.named_modules()
            if any(f".{name}".endswith(f".{target}") for target in targets)
        }
        told = str(error).splitlines()[0].removesuffix("(")
        raise InputError(
            f"model.adapted: {told}: adapters are for linear layers, convolutions and embeddings, and it names "
            + ", ".join(sorted(kinds)[:4])
        ) from error


def adapted_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of `module` that have an adapter, by the name of what it changes: `LAYER.base_layer`."""
    names = [name.removesuffix(".lora_A") for name, _ in module.named_modules() if name.endswith(".lora_A")]
    return {f"{name}.base_layer": module.get_submodule(name) for name in names}


def adapter_weights(module: nn.Module) -> set[str]:
    """Return the names of the weights of adapters in `module`."""
    inside = tuple(f"{name.removesuffix('.base_layer')}.lora_" for name in adapted_layers(module))
    return {name for name, _ in module.named_parameters() if name.startswith(inside)}


def mergeable(module: nn.Module) -> Params:
    """Return the live weights of `module` that rules merge: those that adapters change, or else those that learn.

    A and B by themselves are not to be merged: the product of two means is no mean of products.
    """
    live = dict(module.named_parameters())
    return {f"{name}.weight": live[f"{name}.weight"] for name in adapted_layers(module)} or tree.parameters(module)


@torch.no_grad()
def without_adapters(module: nn.Module, weights: Params) -> Params:
    """Return `weights` of `module` by the names of the network without adapters, which are part of what they change."""
    layers, adapters = adapted_layers(module), adapter_weights(module)
    changed = {
        f"{name}.weight": weights[f"{name}.weight"] + layer.get_delta_weight(_NAME)  # type: ignore[operator]
        for name, layer in layers.items()
    }
    kept = {name: changed.get(name, each) for name, each in weights.items() if name not in adapters}
    outside = {f"{name}.": f"{name.removesuffix('base_layer')}" for name in layers}
    return _renamed(kept, outside)


def beside_adapters(module: nn.Module, weights: Params) -> Params:
    """Return `weights` of the network without adapters by the names that `module` has them under, adapters left out."""
    return _renamed(weights, {name.removesuffix("base_layer"): f"{name}." for name in adapted_layers(module)})


def _renamed(weights: Params, layers: dict[str, str]) -> Params:
    """Return `weights` with other names of the layers that they are of, such as `layer.` for `layer.base_layer.`."""
    cut = {name: name.rfind(".") + 1 for name in weights}
    return {layers.get(name[:end], name[:end]) + name[end:]: weights[name] for name, end in cut.items()}


@torch.no_grad()
def fold(module: nn.Module) -> None:
    """Make what the adapters of `module` change part of its weights, and draw them anew: they change nothing then."""
    for layer in adapted_layers(module).values():
        layer.base_layer.weight += layer.get_delta_weight(_NAME)  # type: ignore[operator,union-attr]
        layer.reset_lora_parameters(_NAME, init_lora_weights=True)  # type: ignore[operator]
