"""Batch norm's statistics of training tasks after each inner step, by which tests may answer queries one by one."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lifelong.meta.network import TaskNetwork, part
from lifelong.meta.normalisation import BatchNorm
from lifelong.tree import Params

_PREFIX = "norm."


def measured(network: TaskNetwork, path: Iterable[Params], inputs: Tensor) -> Params:
    """Return the mean over tasks of batch norm's mean and variance after each step.

    A network whose weights have moved has other activations, so each step has statistics of its own (Antoniou et al.
    2018, 1810.09502). Theirs run along in training; ours are measured once when training ends, with its last weights.

    Args:
        path: weights `[tasks, ...]` before and after each step.
        inputs: `[tasks, samples, ...]`, queries of training tasks.

    Returns:
        `norm.LAYER.mean` and `norm.LAYER.variance`, `[steps + 1, channels]`.
    """
    steps = [_of_one(network, weights, inputs) for weights in path]
    return {f"{_PREFIX}{name}": torch.stack([step[name] for step in steps]) for name in steps[0]}


def at(buffers: Params, step: int) -> Params | None:
    """Return the statistics of `step` as `Norm` takes them, or None where none were measured."""
    found = {name.removeprefix(_PREFIX): each[step] for name, each in buffers.items() if name.startswith(_PREFIX)}
    return found or None


def _of_one(network: TaskNetwork, weights: Params, inputs: Tensor) -> Params:
    trunk, seen = copy.deepcopy(network.trunk), dict[str, list[Tensor]]()

    def watch(name: str, layer: nn.Module) -> None:
        def see(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            across = [each for each in range(given[0].dim()) if each != 1]
            variance, mean = torch.var_mean(given[0], across, correction=0)
            for kind, each in (("mean", mean), ("variance", variance)):
                seen.setdefault(f"{name}.{kind}", []).append(each)

        layer.register_forward_pre_hook(see)

    for name, layer in trunk.named_modules():
        if isinstance(layer, BatchNorm):
            watch(name, layer)
    own = part(weights, "trunk")
    with torch.no_grad():
        for task in range(len(inputs)):
            torch.func.functional_call(trunk, {name: each[task] for name, each in own.items()}, (inputs[task],))
    # A layer that is called more than once has the mean over its calls.
    return {name: torch.stack(each).mean(0) for name, each in seen.items()}
