"""Adapters within a network, by peft (LoRA, DoRA, IA3): added, and folded into the weights that they change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lifelong import tree
from lifelong.errors import InputError, closest
from lifelong.models.pretrained.settings import Pretrained
from lifelong.models.pretrained.sources import library
from lifelong.tree import Params

_NAME = "default"


def add_adapters(module: nn.Module, chosen: Pretrained) -> None:
    """Give layers of `module` an adapter each, which changes nothing at first, and freeze all else.

    - `lora`: `W + alpha/rank B A`, B being 0 at first (Hu et al. 2021, 2106.09685, eq. 3).
    - `dora`: `m V / ||V||` for each output, V as LoRA has it and m the norms of W at first (Liu et al. 2024,
      2402.09353, eq. 5).
    - `ia3`: outputs times l, 1 at first (Liu et al. 2022, 2205.05638, section 3.3).

    A is drawn from torch's global generator.

    Raises:
        InputError: no layer has such a name, or one of them cannot have an adapter.
    """
    targets = _linear(module) if chosen.adapted is None else list(chosen.adapted)
    names = [name for name, _ in module.named_modules() if name]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            near = closest(target, {name.rpartition(".")[2] for name in names})
            raise InputError(f"model.adapted: no layer's name ends with {target!r}{near or f', such as {names[-1]!r}'}")
    if not targets:
        raise InputError(
            f"model.learn {chosen.learn} adapts linear layers, and the network has none: name layers with model.adapted"
        )
    _check_adapted(module, targets, chosen.learn)
    peft = library("peft", "'lifelong[hf]'")
    if chosen.learn == "ia3":
        config = peft.IA3Config(target_modules=targets, feedforward_modules=[])
    else:
        dora = chosen.learn == "dora"
        config = peft.LoraConfig(r=chosen.rank, lora_alpha=chosen.alpha, target_modules=targets, use_dora=dora)
    try:
        peft.inject_adapter_in_model(config, module, adapter_name=_NAME)
    except ValueError as error:
        raise InputError(f"model.adapted {', '.join(targets[:4])}: {str(error).splitlines()[0]}") from error


def _linear(module: nn.Module) -> list[str]:
    """Return the linear layers that run themselves: attention of PyTorch's own reads the weights of its."""
    read = [f"{name}." for name, each in module.named_modules() if isinstance(each, nn.MultiheadAttention)]
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    return [name for name in linear if not name.startswith(tuple(read))]


def _check_adapted(module: nn.Module, targets: Sequence[str], learn: str) -> None:
    """Raise `InputError` for a layer that an adapter of the kind `learn` cannot change, or would change otherwise."""
    exact, able = (nn.Linear, nn.Conv2d), set(_linear(module))
    met: dict[int, str] = {}
    for name, layer in module.named_modules():
        if not any(f".{name}".endswith(f".{target}") for target in targets):
            continue
        told = f"model.adapted: {name} ({type(layer).__name__})"
        if not hasattr(layer, "weight") or (learn != "lora" and not isinstance(layer, exact)):
            kinds = "linear layers and Conv2d" if learn != "lora" else "linear layers, convolutions and embeddings"
            raise InputError(f"{told} cannot have an adapter: {learn} is for {kinds}")
        if isinstance(layer, nn.Linear) and name not in able:
            raise InputError(f"{told} is run by nn.MultiheadAttention, which would pass its adapter by")
        if learn != "ia3" and getattr(layer, "groups", 1) > 1:
            raise InputError(f"{told} is a grouped convolution, whose change {learn} cannot tell: take ia3")
        if learn == "dora" and not bool(_norms(layer.weight).all()):
            raise InputError(f"{told} has an output with no weight but 0, which has no direction for dora: take lora")
        other = met.setdefault(id(layer.weight), name)
        if other != name:
            raise InputError(f"{told} shares its weight with {other}, and each would change it: name one of them")


def adapted_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of `module` that have an adapter, by the name of what it changes: `LAYER.base_layer`."""
    ends = (".lora_A", ".ia3_l")
    names = [name.rpartition(".")[0] for name, _ in module.named_modules() if name.endswith(ends)]
    return {f"{name}.base_layer": module.get_submodule(name) for name in names}


def adapter_weights(module: nn.Module) -> set[str]:
    """Return the names of the weights of adapters in `module`."""
    layers = [name.removesuffix("base_layer") for name in adapted_layers(module)]
    inside = tuple(f"{name}{kind}_" for name in layers for kind in ("lora", "ia3"))
    return {name for name, _ in module.named_parameters() if name.startswith(inside)}


def mergeable(module: nn.Module) -> Params:
    """Return the live weights of `module` that rules merge: those that adapters change, or else those that learn.

    A and B by themselves are not to be merged: the product of two means is no mean of products.
    """
    live = dict(module.named_parameters())
    changed = [f"{name}.{part}" for name, layer in adapted_layers(module).items() for part in _changed(layer)]
    return {name: live[name] for name in changed} or tree.parameters(module)


def _changed(layer: Any) -> list[str]:
    """Return which parameters of its base the adapter of `layer` changes."""
    biased = hasattr(layer, "ia3_l") and getattr(layer.base_layer, "bias", None) is not None
    return ["weight", "bias"] if biased else ["weight"]


def _with_adapter(layer: Any, value: Tensor) -> Tensor:
    """Return `value`, of a parameter that the adapter of `layer` changes, as it makes it."""
    outward = (-1, *[1] * (value.dim() - 1))
    if hasattr(layer, "ia3_l"):
        scaled: Tensor = value * layer.ia3_l[_NAME].view(outward)
        return scaled
    changed: Tensor = value + layer.get_delta_weight(_NAME)
    if layer.lora_magnitude_vector:
        lengths: Tensor = layer.lora_magnitude_vector[_NAME].weight.flatten()
        changed = changed * (lengths / _norms(changed)).view(outward)
    return changed


def _norms(weight: Tensor) -> Tensor:
    """Return the norm of what leads to each output, `[outputs]`."""
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norms


@torch.no_grad()
def without_adapters(module: nn.Module, weights: Params) -> Params:
    """Return `weights` of `module` by the names of the network without adapters, which are part of what they change."""
    layers, adapters = adapted_layers(module), adapter_weights(module)
    changed = {
        f"{name}.{part}": _with_adapter(layer, weights[f"{name}.{part}"])
        for name, layer in layers.items()
        for part in _changed(layer)
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
    layers: list[Any] = list(adapted_layers(module).values())
    for layer in layers:
        for part in _changed(layer):
            live = layer.base_layer.get_parameter(part)
            live.copy_(_with_adapter(layer, live))
        if hasattr(layer, "ia3_l"):
            layer.reset_ia3_parameters(_NAME)
            continue
        layer.reset_lora_parameters(_NAME, init_lora_weights=True)
        if layer.lora_magnitude_vector:
            length = layer.lora_magnitude_vector[_NAME].weight
            length.copy_(_norms(layer.base_layer.weight).view_as(length))
