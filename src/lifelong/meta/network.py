"""A network for many tasks at once: `apply(weights [tasks, ...], inputs [tasks, samples, ...])`, in four formulations.

All of them compute the same function, so an algorithm is written once, and adapting a batch of tasks is plain autograd
on one tensor program. Which formulation is fastest hangs on shape and machine (`engine.py` measures it).
"""

from __future__ import annotations

import copy
import functools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lifelong import tree
from lifelong.errors import InputError, unknown
from lifelong.meta import task_axis
from lifelong.meta.normalisation import BatchNorm, Norm, without_buffers
from lifelong.models.network import feature_width
from lifelong.tree import Params

Formulation = Literal["grouped", "columns", "vmap", "loop"]
FORMULATIONS: tuple[Formulation, ...] = ("grouped", "columns", "vmap", "loop")

# (weights, inputs, whose statistics) -> outputs, as `TaskNetwork.features` says.
Apply: TypeAlias = Callable[[Params, Tensor, Norm], Tensor]

Statistics = Literal["transductive", "support", "per-step"]


@dataclass(frozen=True)
class TaskNetwork:
    """A trunk and a linear head whose weights have a leading task axis.

    Args:
        trunk: maps inputs to features `[batch, width]`; its batch norms keep no statistics. Weights of it that need no
            gradient (`requires_grad_(False)`) are not meta-learned, and the same for all tasks.
        head: `nn.Linear`, maps features to outputs.
        formulation: how tasks are computed together.
        statistics: what batch norm normalises queries by: the statistics of all of a task's queries (`transductive`),
            those of its support samples (`support`), or in tests those of training tasks' queries after the same
            number of steps (`per-step`), where training is transductive.
    """

    trunk: nn.Module
    head: nn.Linear
    formulation: Formulation = "vmap"
    statistics: Statistics = "transductive"

    def initial(self) -> Params:
        """Return a copy of the weights, `trunk.` and `head.` before their names: where meta-learning begins."""
        learned: Params = {name: each for name, each in self.trunk.named_parameters() if each.requires_grad}
        head: Params = dict(self.head.named_parameters())
        return tree.snapshot({**_named("trunk", learned), **_named("head", head)})

    def features(self, weights: Params, inputs: Tensor, norm: Norm = Norm()) -> Tensor:  # noqa: B008, immutable
        """Return the features of each task's samples.

        Args:
            weights: of trunk and head, each `[tasks, ...]`; of the trunk those that are learned.
            inputs: `[tasks, samples, ...]`.
            norm: whose statistics batch norm takes; those of all of a task's samples by default.

        Returns:
            `[tasks, samples, width]`.
        """
        return self._apply({**shared(self._constant, len(inputs)), **part(weights, "trunk")}, inputs, norm)

    def outputs(self, weights: Params, features: Tensor) -> Tensor:
        """Return the head's outputs `[tasks, samples, outputs]` for `features` `[tasks, samples, width]`."""
        outputs = torch.bmm(features, weights["head.weight"].transpose(1, 2))
        return outputs + weights["head.bias"].unsqueeze(1) if "head.bias" in weights else outputs

    def query_features(self, weights: Params, support: Tensor, query: Tensor, fixed: Params | None = None) -> Tensor:
        """Return the features of query samples `[tasks, queries, ...]`, normalised as `statistics` says.

        Args:
            fixed: the statistics of this step, where they are known; see `Norm`.
        """
        if self.statistics != "support" or not self.normalises:
            return self.features(weights, query, Norm(fixed=fixed if self.statistics == "per-step" else None))
        shots = support.shape[1]
        return self.features(weights, torch.cat([support, query], 1), Norm(shots))[:, shots:]

    @functools.cached_property
    def normalises(self) -> bool:
        """Whether there is any batch norm, so that samples of a batch see each other."""
        return any(isinstance(each, BatchNorm) for each in self.trunk.modules())

    @functools.cached_property
    def answering(self) -> TaskNetwork:
        """The same without what modules do in training alone, such as dropout; the weights are given anyway."""
        return replace(self, trunk=copy.deepcopy(self.trunk).eval())

    @functools.cached_property
    def _constant(self) -> Params:
        return {name: each for name, each in self.trunk.named_parameters() if not each.requires_grad}

    @functools.cached_property
    def _apply(self) -> Apply:
        return _formulated(self.trunk, self.formulation)


def part(weights: Params, name: str) -> Params:
    """Return the weights of the part called `name`, without its name before theirs."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): each for key, each in weights.items() if key.startswith(prefix)}


def shared(weights: Params, tasks: int) -> Params:
    """Return `weights` with a task axis of length `tasks`, without copying: every task begins with the same."""
    return {name: each.expand(tasks, *each.shape) for name, each in weights.items()}


def task_network(
    trunk: nn.Module,
    head: nn.Linear,
    sample: Tensor,
    *,
    formulation: Formulation = "vmap",
    statistics: Statistics = "transductive",
) -> TaskNetwork:
    """Return the network of `trunk` and `head`, which are copied.

    Args:
        trunk: any module from `[batch, ...]` to `[batch, width]`; see `TaskNetwork` for weights that stay as they are.
        head: the last layer, from `[batch, width]`.
        sample: `[2 or more, ...]`, inputs as the trunk takes them, to try it with.
        formulation: `grouped` and `columns` are for layers that `task_axis` knows, `vmap` for what PyTorch can map.

    Raises:
        InputError: a module whose buffers change as it runs, or that the formulation cannot compute; or a head of
            another width.
    """
    if formulation not in FORMULATIONS:
        raise unknown("formulation", formulation, FORMULATIONS)
    copied = without_buffers(copy.deepcopy(trunk)).train()
    width = feature_width(copied, sample)
    if width != head.in_features:
        raise InputError(f"the head takes {head.in_features} features, and the trunk makes {width}")
    _check_buffers(copied, sample)
    reason = fault(copied, sample, formulation)
    if reason is not None:
        raise InputError(reason)
    return TaskNetwork(copied, copy.deepcopy(head), formulation, statistics)


def fault(module: nn.Module, sample: Tensor, formulation: Formulation) -> str | None:
    """Return why `formulation` cannot compute `module`, or None where it can.

    Args:
        module: without PyTorch's batch norms, as in a `TaskNetwork`.
        sample: inputs that it can take, to try it with.
    """
    if formulation == "loop":
        return None
    if formulation != "vmap" and task_axis.layers(module) is None:
        return (
            f"formulation {formulation} knows sequences of PyTorch's own convolutions, linear layers, batch norm, "
            "pooling and activations, each with its own weights, and the model holds others: take vmap, loop or auto"
        )
    weights = shared({name: each.detach() for name, each in module.named_parameters()}, 2)
    try:
        with torch.no_grad():
            _formulated(module, formulation)(weights, sample.expand(2, *sample.shape), Norm())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # The module itself takes the sample: what fails is an operation that is not there for several tasks at once.
        told = re.split(r"\.\s|\n", str(error))[0].rstrip(".")  # more sentences ask for a report to PyTorch
        return f"formulation {formulation} cannot compute the model ({told}): take loop, which can, or auto"
    return None


def _formulated(module: nn.Module, formulation: Formulation) -> Apply:
    if formulation in ("grouped", "columns"):
        found = task_axis.layers(module)
        assert found is not None
        layout = task_axis.Grouped() if formulation == "grouped" else task_axis.Columns()
        return functools.partial(task_axis.run, layout, found)
    # Calling a module with other weights puts them into it for a while, so each thread needs a module of its own.
    mine = threading.local()

    def one(weights: Params, inputs: Tensor) -> Tensor:
        outputs: Tensor = torch.func.functional_call(mine.module, weights, (inputs,))
        return outputs

    def run(weights: Params, inputs: Tensor, norm: Norm) -> Tensor:
        if not hasattr(mine, "module"):
            mine.module = copy.deepcopy(module)
        for name, each in mine.module.named_modules():
            if isinstance(each, BatchNorm):
                each.first, each.fixed = norm.first, norm.of(name)
        if formulation == "vmap":
            mapped: Tensor = torch.func.vmap(one, randomness="different")(weights, inputs)
            return mapped
        tasks = range(len(inputs))
        return torch.stack([one({name: each[task] for name, each in weights.items()}, inputs[task]) for task in tasks])

    return run


def _check_buffers(module: nn.Module, sample: Tensor) -> None:
    """Refuse a module that writes to its buffers: tasks share them, and would learn from each other."""
    before = tree.snapshot(dict(module.named_buffers()))
    with torch.no_grad():
        module(sample)
    for name, buffer in module.named_buffers():
        if not torch.equal(buffer, before[name]):
            owner = module.get_submodule(name.rpartition(".")[0])
            remedy = (
                "switch its running statistics off (track_running_stats=False), or replace it by nn.BatchNorm2d or "
                "nn.GroupNorm"
                if "running" in name
                else "have it compute what it needs from its inputs, or leave the buffer as it is in training"
            )
            raise InputError(
                f"{type(owner).__name__} writes to its buffer {name!r} as it runs, which tasks that are adapted "
                f"at once would share: {remedy}"
            )


def _named(prefix: str, weights: Params) -> Params:
    return {f"{prefix}.{name}": each for name, each in weights.items()}
