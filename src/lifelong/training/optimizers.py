"""Optimisers of `torch.optim` by name, in their fused form where there is one, and learning-rate schedules."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lifelong.errors import InputError, closest, unknown
from lifelong.learner import MakeOptimizer

_OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, Optimizer)
    and kind is not Optimizer
    # LBFGS evaluates the loss several times a step and SparseAdam wants sparse gradients.
    and name not in ("LBFGS", "SparseAdam")
}

RATES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}


def optimizer_names() -> list[str]:
    """Return the names that `make_optimizer` knows."""
    return sorted(_OPTIMIZERS)


def make_optimizer(
    name: str, lr: float, settings: dict[str, Any], factors: Mapping[nn.Parameter, float] | None = None
) -> MakeOptimizer:
    """Return what builds the optimiser `name` for a list of parameters.

    Args:
        name: a class of `torch.optim`, in any case: `adam`, `sgd`, `adamw` ...
        lr: learning rate, above 0.
        settings: further arguments of that class, such as `momentum` or `weight_decay`. `fused` is on where the class
            has it, as one kernel for all parameters is faster than one for each operation.
        factors: on the learning rate of single parameters; those with the same one are a group.

    Raises:
        InputError: an unknown optimiser, an argument that it does not have, or a value that it refuses.
    """
    kind = _OPTIMIZERS.get(name.lower())
    if kind is None:
        raise unknown("optimizer", name, _OPTIMIZERS)
    known = set(inspect.signature(kind).parameters) - {"params", "lr"}
    for key in settings:
        if key not in known:
            raise InputError(
                f"optimizer {name} has no setting {key!r}{closest(key, known) or f': it has {sorted(known)}'}"
            )
    arguments: dict[str, Any] = {"lr": lr, **({"fused": True} if "fused" in known else {}), **settings}

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        try:
            made = kind(_groups(parameters, lr, factors or {}), **arguments)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"optimizer {name}: {str(error).splitlines()[0]}") from error
        if isinstance(made, torch.optim.SGD) and arguments.get("momentum") and arguments["fused"]:
            made.register_step_pre_hook(_late_momentum)
        return made

    return make


def _late_momentum(optimizer: Optimizer, *_: object) -> None:
    """Start the momentum of parameters whose first gradient comes later than that of others, at 0.

    The fused kernel takes a buffer for each parameter or for none, and fails where some have one.
    """
    for group in optimizer.param_groups:
        moving = [each for each in group["params"] if each.grad is not None]
        fresh = [each for each in moving if optimizer.state[each].get("momentum_buffer") is None]
        if len(fresh) < len(moving):
            for each in fresh:
                optimizer.state[each]["momentum_buffer"] = torch.zeros_like(each)


def _groups(parameters: Iterable[nn.Parameter], lr: float, factors: Mapping[nn.Parameter, float]) -> list[Any]:
    """Return `parameters`, in groups by their factor if there are several."""
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(factors.get(parameter, 1.0), []).append(parameter)
    if not groups:
        # An optimiser takes a group of nothing, but not nothing.
        return [{"params": []}]
    if set(groups) == {1.0}:
        return groups[1.0]
    return [{"params": each, "lr": lr * factor} for factor, each in groups.items()]


def rate_schedule(name: str, warmup: float) -> Callable[[float], float] | None:
    """Return the factor on the learning rate as a function of the share of a task's steps done, or None for 1.

    Args:
        name: `constant`, `linear` (to 0) or `cosine` (to 0).
        warmup: share of the steps, 0..1, in which the factor rises from 0 to 1. A share and not a number of steps, so
            that it cannot outlast a short task.
    """
    if name == "constant" and warmup == 0:
        return None

    def factor(done: float) -> float:
        if done < warmup:
            return done / warmup
        rest = (done - warmup) / (1 - warmup)
        return RATES[name](rest) if name in RATES else 1.0

    return factor
