"""All that training changes, as plain fields: data, no behaviour of its own beyond keeping them in step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lifelong import tree
from lifelong.models import Network
from lifelong.streams.task import Scenario, Task
from lifelong.tree import Params

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass
class Clock:
    """Where training stands.

    Args:
        task: index of the task at hand.
        step: steps of it that are done.
        total_steps: steps of all tasks that are done.
        epoch: whole passes over its training data that are done.
        steps: steps that are planned for it.
        stop_task: no further step of it is wanted.
    """

    task: int = 0
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    steps: int = 0
    stop_task: bool = False


@dataclass
class Batch:
    """What one step learns from.

    Args:
        inputs: `[batch, ...]` as the network takes them.
        targets: `[batch]` as `Split` has them.
        task: index of the task, or `[batch]` int64 where samples differ in it.
        raw: `[new, ...]`, the task's own inputs as the data set stores them (uint8 for images), arranged.
        scaled: makes inputs for the network of such raw ones.
        features: `[batch, width]`, what the trunk made of the inputs; filled in by the forward pass.
    """

    inputs: Tensor
    targets: Tensor
    task: int | Tensor
    raw: Tensor = field(default_factory=lambda: torch.empty(0))
    scaled: Callable[[Tensor], Tensor] = lambda inputs: inputs
    features: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def new(self) -> int:
        """The number of samples, the first ones, that are the task's own; methods add theirs behind."""
        return len(self.raw)

    def tasks(self) -> Tensor:
        """Return the index of the task of each sample, `[batch]` int64."""
        if isinstance(self.task, Tensor):
            return self.task
        return torch.full_like(self.targets, self.task, dtype=torch.int64)


@dataclass
class Learner:
    """A network, its optimiser, and where they stand.

    Args:
        model: trunk and head.
        make_optimizer: builds the optimiser for a list of parameters.
        scenario: what is known at prediction time.
        seed: of everything that is drawn while learning.
        device: where model and data live.
        autocast: the dtype of mixed precision, or None for the parameters' own.
        largest_batch: samples at most in a pass with gradients that makes no step, for the sake of memory.
        planned_tasks: length of the stream where it is known beforehand, or None.
        planned_classes: the number of classes of each task, where that is known beforehand.
        boundaries: it is known where a task ends.
        clock: where it stands.
        params: the network's own parameters that are trained; importances, anchors and gradients are about these.
        trained: all that the optimiser moves: `params`, and what the method trains besides, under names of its own.
    """

    model: Network
    make_optimizer: MakeOptimizer
    scenario: Scenario
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    autocast: torch.dtype | None = None
    largest_batch: int = 2**31
    planned_tasks: int | None = None
    planned_classes: tuple[int, ...] = ()
    boundaries: bool = True
    clock: Clock = field(default_factory=Clock)
    params: Params = field(init=False, default_factory=dict)
    trained: Params = field(init=False, default_factory=dict)
    optimizer: Optimizer = field(init=False)

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which forward passes run: autocast, or nothing."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast)


def grow(learner: Learner, task: Task) -> None:
    """Give the head what `task` needs; afterwards `learner.params` are the trainable parameters of all tasks so far."""
    learner.model.head.grow(len(task.classes))
    learner.model.to(learner.device)
    learner.params = tree.parameters(learner.model)


def train_these(learner: Learner, trained: Params) -> None:
    """Make `trained` what the optimiser moves; `learner.params` are those of them that are the network's own."""
    own = tree.parameters(learner.model)
    learner.trained = trained
    learner.params = {name: each for name, each in trained.items() if name in own}


def renew_optimizer(learner: Learner, keep: bool) -> None:
    """Make the optimiser ready for a task: afresh, or (`keep`) with its state and the parameters that are new."""
    if not keep or learner.clock.task == 0:
        learner.optimizer = learner.make_optimizer(learner.trained.values())  # type: ignore[arg-type]
        return
    known = {id(parameter) for group in learner.optimizer.param_groups for parameter in group["params"]}
    added = [parameter for parameter in learner.trained.values() if id(parameter) not in known]
    if added:
        learner.optimizer.add_param_group({"params": added})


def start_over(learner: Learner, live: Params, weights: Params) -> None:
    """Copy `weights` into `live`, tensors of the network, and have an optimiser that is kept forget what it knew."""
    tree.copy_(live, weights)
    if hasattr(learner, "optimizer"):
        for each in live.values():
            learner.optimizer.state.pop(each, None)


def freeze(learner: Learner, module: nn.Module) -> None:
    """Stop `module` from learning: its parameters get no gradient and its normalisation keeps its statistics."""
    module.requires_grad_(False)
    learner.params = tree.parameters(learner.model)


def train_mode(model: nn.Module) -> None:
    """Put `model` in training mode, except modules whose own parameters are all frozen: their statistics stay."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()
