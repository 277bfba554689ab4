"""PackNet: each task gets weights of its own in one network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from lifelong import tree
from lifelong.errors import InputError
from lifelong.learner import Batch, Learner
from lifelong.methods import structure
from lifelong.methods.method import Method, state, transient
from lifelong.methods.structure import Hold
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Task
from lifelong.tree import Params

# Owners are a byte a weight, and 0 is nobody.
_MOST_TASKS = 255


@dataclass
class PackNet(Method):
    """Train a task with the free weights, prune it to make room, and train what is left; old weights never move.

    The t-th task (from 1) takes all free weights, starting at 0 but for the first task. Before the last `retrain` of
    its steps, of the weights that it owns in each layer the share `prune` that is smallest in size is set to 0 and
    freed (Mallya & Lazebnik 2018, 1711.05769, section 3). Task j is answered with the weights `0 < owner <= j`, so its
    answers stay the same to the bit. The last task of a stream whose length is known keeps all that it took. After n
    tasks `prune^n` of the weights are free.

    Weights are the parameters of the trunk with two or more dimensions; all others (biases, normalisation with its
    statistics) are frozen after the first task. A task that is stopped early is pruned where it stopped.
    """

    family: ClassVar[str] = "structural"
    paper: ClassVar[str] = "1711.05769"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.TASK,)
    needs_task_id: ClassVar[bool] = True
    alone: ClassVar[str] = "weights of old tasks never move, so there is nothing to hold or to replay for"
    regression: ClassVar[bool] = True

    prune: float = setting(0.75, "share of a task's weights in each layer that is freed for later ones", ge=0, lt=1)
    retrain: float = setting(1 / 3, "share of a task's steps that come after pruning, 0 to 1", ge=0, lt=1)
    owner: Params = state(dict)
    pruned: bool = state(lambda: False)
    hold: Hold | None = transient(lambda: None)

    def setup(self, learner: Learner) -> None:
        """Count how the free weights of a stream of known length dwindle, before any of it is trained.

        Raises:
            InputError: a task would find no free weight, or tasks share a head.
        """
        structure.need_heads(learner, "packnet")
        free = {name: each.numel() for name, each in _weights(learner).items()}
        self._check(learner, 0, sum(free.values()))
        for index in range(1, learner.planned_tasks or 1):
            free = {name: self._share(count) for name, count in free.items()}
            self._check(learner, index, sum(free.values()))

    def before_task(self, learner: Learner, task: Task) -> None:
        """Give the task all free weights.

        Raises:
            InputError: there is none.
        """
        for name, weight in _weights(learner).items():
            self.owner.setdefault(name, torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device))
        self._check(learner, task.index, sum(int((owner == 0).sum()) for owner in self.owner.values()))
        if task.index > 0:
            for parameter in learner.model.trunk.parameters():
                parameter.requires_grad_(parameter.requires_grad and parameter.dim() > 1)
        for owner in self.owner.values():
            owner[owner == 0] = task.index + 1
        self.pruned, self.hold = False, None

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        if learner.clock.task > 0:
            structure.hold_statistics(learner.model.trunk)
        return batch

    def before_step(self, learner: Learner) -> None:
        self._held(learner).mask(learner.params)

    def after_step(self, learner: Learner) -> None:
        self._held(learner).restore(learner.params)
        steps = learner.clock.steps
        if not self.pruned and learner.clock.step + 1 >= steps - round(self.retrain * steps):
            self._prune(learner)

    def after_task(self, learner: Learner, task: Task) -> None:
        if not self.pruned:
            self._prune(learner)
        # An early stop puts back the best weights of the task, which may be those before pruning.
        self._clear(learner)
        self.hold = None

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        if task >= learner.clock.task:
            return super().logits(learner, inputs, task)
        live = _weights(learner)
        masked = {name: live[name] * (owner <= task + 1) for name, owner in self.owner.items()}
        logits: Tensor = functional_call(learner.model, masked, (inputs, task))
        return logits

    def _held(self, learner: Learner) -> Hold:
        """Return what holds the weights that are not the task's; made anew where the run is resumed."""
        if self.hold is None:
            own = learner.clock.task + 1
            self.hold = Hold.of(learner.params, {name: owner != own for name, owner in self.owner.items()})
        return self.hold

    def _prune(self, learner: Learner) -> None:
        """Free the smallest of the task's weights, unless no task comes after it."""
        self.pruned, self.hold = True, None
        if learner.planned_tasks == learner.clock.task + 1:
            return
        for name, weight in _weights(learner).items():
            owner = self.owner[name].view(-1)
            own = (owner == learner.clock.task + 1).nonzero().squeeze(1)
            sizes = weight.detach().flatten()[own].abs()
            owner[own[sizes.topk(self._share(len(own)), largest=False).indices]] = 0
        self._clear(learner)

    @torch.no_grad()
    def _clear(self, learner: Learner) -> None:
        """Set free weights to 0."""
        for name, weight in _weights(learner).items():
            weight.mul_(self.owner[name] != 0)

    def _share(self, count: int) -> int:
        """Return how many of a layer's `count` weights are freed."""
        return int(self.prune * count)

    def _check(self, learner: Learner, index: int, free: int) -> None:
        total = tree.size(_weights(learner))
        if not free:
            raise InputError(
                f"method packnet: prune = {self.prune:g} leaves {free} of {total} weights free for task {index + 1}: "
                "prune more, or take a wider network"
            )
        if index + 1 > _MOST_TASKS:
            raise InputError(f"method packnet tells at most {_MOST_TASKS} tasks apart: task {index + 1} is too many")


def _weights(learner: Learner) -> Params:
    """Return the parameters that tasks divide among them."""
    live = tree.parameters(learner.model)
    return {name: each for name, each in live.items() if name.startswith("trunk.") and each.dim() > 1}
