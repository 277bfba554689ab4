"""Trunks that are a sequence of layers, for methods that must know which layer feeds which."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lifelong.errors import InputError

# All layers with parameters that a sequence may have.
LAYERS = (nn.Linear, nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Stage:
    """A linear or convolution layer with all that comes before the next one.

    Args:
        name: of the layer in the network, such as `trunk.1`.
        before: modules before the layer; only the first stage has any.
        layer: has `units` outputs (channels).
        rest: modules behind it: normalisation, activation, pooling, flattening.
    """

    name: str
    before: tuple[nn.Module, ...]
    layer: nn.Linear | nn.Conv2d
    rest: tuple[nn.Module, ...]

    @property
    def units(self) -> int:
        return len(self.layer.weight)


def stages(trunk: nn.Module, method: str) -> list[Stage]:
    """Return the stages of `trunk`, which runs one after the other.

    Args:
        trunk: `nn.Sequential`, of such, of linear and ungrouped convolution layers, normalisation, and modules without
            parameters.
        method: names who asks, in the error.

    Raises:
        InputError: a trunk of another kind, or without a layer.
    """
    names = {module: name for name, module in trunk.named_modules()}
    flat = list(_flat(trunk))
    odd = [each for each in flat if not _fits(each) or flat.count(each) > 1]
    layers = [index for index, each in enumerate(flat) if isinstance(each, nn.Linear | nn.Conv2d)]
    if odd or not layers:
        what = f"has a {type(odd[0]).__name__}" if odd else "has none"
        raise InputError(
            f"method {method} needs a trunk that is a sequence of linear or convolution layers, and this one {what}"
        )
    made = []
    for start, end in zip(layers, [*layers[1:], len(flat)], strict=True):
        before = flat[:start] if start == layers[0] else []
        layer = flat[start]
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        made.append(Stage(f"trunk.{names[layer]}", tuple(before), layer, tuple(flat[start + 1 : end])))
    return made


def through(modules: Sequence[nn.Module], inputs: Tensor) -> Tensor:
    """Return `inputs` after all `modules` in a row."""
    for module in modules:
        inputs = module(inputs)
    return inputs


def through_gates(found: Sequence[Stage], gates: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Return features `[batch, width]`: each stage's output times its gate, `[units]` or `[batch, units]`."""
    for stage, gate in zip(found, gates, strict=True):
        inputs = through((*stage.before, stage.layer, *stage.rest), inputs)
        wide = spread(gate, inputs.shape[1])
        inputs = inputs * wide.view(*wide.shape[:-1], -1, *[1] * (inputs.dim() - 2))
    return inputs


def spread(gate: Tensor, width: int) -> Tensor:
    """Return `[..., width]` values for `[..., units]`, where flattening made several inputs of each unit."""
    units = gate.shape[-1]
    return gate if units == width else gate.repeat_interleave(width // units, dim=-1)


def need_units_apart(found: Sequence[Stage], method: str) -> None:
    """Refuse normalisation over several units.

    Raises:
        InputError: a stage has one.
    """
    for stage in found:
        for module in stage.rest:
            if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                kind = type(module).__name__
                raise InputError(f"method {method} keeps units apart, and {kind} mixes them: choose norm batch or none")


def drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return weights of `shape` `[outputs, inputs, ...]`, uniform as those of new linear and convolution layers."""
    bound = 1 / math.sqrt(max(math.prod(shape[1:]), 1))
    return bound * (2 * torch.rand(shape, generator=generator) - 1)


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for child in module:
            yield from _flat(child)
    else:
        yield module


def _fits(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return isinstance(module, LAYERS) or not any(True for _ in module.parameters())
