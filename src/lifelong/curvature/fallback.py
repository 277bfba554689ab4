"""Sums over samples of squared or absolute per-sample gradients, for parameters that no rule covers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lifelong import tree
from lifelong.tree import Params

Forward = Callable[[Tensor], Tensor]

# Samples that `vmap(grad)` treats at a time, each with a gradient of its own.
_CHUNK = 16


@dataclass(frozen=True)
class Use:
    """A parameter as a layer knows it."""

    layer: nn.Module
    name: str


def add_moments(
    model: nn.Module,
    forward: Forward,
    names: Sequence[str],
    totals: Params,
    inputs: Tensor,
    directions: Sequence[Tensor],
    power: int,
) -> None:
    """Add `sum_n |J_n^T v_n|^power` for each `v` of `directions` to `totals`, for the parameters `names` only.

    By `vmap(grad)` over chunks of samples, or one sample at a time where the model is beyond `vmap`.
    """
    for direction in directions:
        for each in gradients(model, forward, names, inputs, direction):
            for name in names:
                found = each[name].to(totals[name].dtype)
                totals[name] += (found.abs() if power == 1 else found.square()).sum(0)


def gradients(
    model: nn.Module, forward: Forward, names: Sequence[str], inputs: Tensor, direction: Tensor
) -> Iterator[Params]:
    """Yield `J_n^T v_n` of the parameters `names`, `[chunk, *shape]` each, for one chunk of samples after the other."""
    slots = _slots(model)
    still = {name: model.get_parameter(name).detach() for name in slots}
    params = {name: still[name] for name in names}

    def scalar(chosen: Params, sample: Tensor, along: Tensor) -> Tensor:
        # The other parameters are detached, so that the gradients belong to no graph of their own.
        with _swapped(slots, {**still, **chosen}):
            outputs = forward(sample.unsqueeze(0))
        # Outputs that are masked with -inf have no direction, and 0 * inf would be no number.
        return torch.where(along != 0, outputs[0] * along, 0.0).sum()

    gradient = torch.func.grad(scalar)
    over_samples = torch.func.vmap(gradient, in_dims=(None, 0, 0))
    for sample, along in zip(inputs.split(_CHUNK), direction.split(_CHUNK), strict=True):
        try:
            yield over_samples(params, sample, along)
        except (RuntimeError, ValueError):
            # Data-dependent control flow and some in-place writes are beyond vmap: one sample at a time then.
            alone = [gradient(params, s, v) for s, v in zip(sample, along, strict=True)]
            yield {key: torch.stack([one[key] for one in alone]) for key in params}


def _slots(model: nn.Module) -> dict[str, list[Use]]:
    """Return the places that each trainable parameter is held in, under its first name; each place once.

    `torch.func.functional_call` takes a module that is registered under two names for two, and leaves it broken.
    """
    names = {id(parameter): name for name, parameter in tree.parameters(model).items()}
    slots: dict[str, list[Use]] = {name: [] for name in names.values()}
    for layer in model.modules():
        for own, parameter in layer._parameters.items():
            if id(parameter) in names:
                slots[names[id(parameter)]].append(Use(layer, own))
    return slots


@contextlib.contextmanager
def _swapped(slots: dict[str, list[Use]], chosen: Params) -> Iterator[None]:
    """Let the model compute with the tensors `chosen` in place of its parameters."""
    own = {name: getattr(uses[0].layer, uses[0].name) for name, uses in slots.items()}
    try:
        _put(slots, chosen)
        yield
    finally:
        _put(slots, own)


def _put(slots: dict[str, list[Use]], tensors: Mapping[str, Tensor]) -> None:
    for name, uses in slots.items():
        for use in uses:
            use.layer._parameters[use.name] = tensors[name]  # type: ignore[assignment]
