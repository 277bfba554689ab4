"""A network that grows on demand: more units where a task is not learned, and two where one would have to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lifelong import randomness, tree
from lifelong.learner import Batch, Learner
from lifelong.methods import sequence, structure
from lifelong.methods.method import Method, state, transient
from lifelong.methods.sequence import Stage
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Task
from lifelong.tree import Params


@dataclass
class Growing(Method):
    """Widen the hidden layers while a task's loss stays high, and split units that the task has changed too much.

    After Yoon et al. 2018 (1708.01547, section 3), in a simpler form. The trunk's parameters of old tasks are pulled
    back by `strength/2 * ||theta - theta*||^2`, with theta* from before the task. Whenever the mean loss of `patience`
    steps is above `threshold`, each hidden layer gets `added` units, whose outgoing weights are 0 at first. Before the
    last `retrain` of a later task's steps, each old unit whose incoming weights moved by more than `drift` times their
    own length is split: a copy of it takes its place in the task, and the unit itself goes back to theta*. No layer
    gets more than `most` times its first units. Task j is answered with the units that there were at its end, which are
    the first ones of each layer.

    Our deviations: a step trains all weights, not a selected path; new units are not thinned out by group sparsity.
    Statistics of normalisation are frozen after the first task. The trunk is a sequence of linear or convolution layers
    that treats each unit by itself.
    """

    family: ClassVar[str] = "structural"
    paper: ClassVar[str] = "1708.01547"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.TASK,)
    needs_task_id: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    alone: ClassVar[str] = "its layers change their shapes within a task, which others do not follow"

    strength: float = setting(1.0, "weight of the penalty strength/2 * ||theta - theta*||^2, at least 0", ge=0)
    threshold: float = setting(0.1, "mean loss above which units are added, at least 0", ge=0)
    patience: int = setting(100, "steps from one look at the loss to the next", ge=1)
    added: int = setting(16, "units that a hidden layer gets at a time", ge=1)
    most: float = setting(4.0, "greatest width of a layer, in multiples of its first, at least 1", ge=1)
    drift: float = setting(1.0, "change of a unit's incoming weights, relative to their length, that splits it", ge=0)
    retrain: float = setting(1 / 3, "share of a task's steps that come after splitting, 0 to 1", ge=0, lt=1)
    first: list[int] = state(list)
    hidden: list[int] = state(list)
    widths: list[list[int]] = state(list)
    start: Params = state(dict)
    total: Tensor = state(lambda: torch.zeros(()))
    looked: int = state(lambda: 0)
    split: bool = state(lambda: False)
    stages: list[Stage] = transient(list)

    def setup(self, learner: Learner) -> None:
        """Look at the trunk.

        Raises:
            InputError: it is no sequence of layers, a normalisation mixes its units, or tasks share a head.
        """
        structure.need_heads(learner, "growing")
        sequence.need_units_apart(sequence.stages(learner.model.trunk, "growing"), "growing")

    def reshape(self, learner: Learner) -> None:
        # All but the newest head, which is widened with the last layer.
        for weight, widths in zip(_heads(learner)[:-1], self.widths, strict=False):
            spread = weight.shape[1] // self.first[-1]
            _widen(weight, 1, weight.new_zeros(len(weight), spread * (widths[-1] - self.first[-1])))
        for place, width in enumerate(self.hidden):
            for _, tensor, dim, spread in self._along(learner, place):
                _widen(tensor, dim, tensor.new_zeros(_with(tensor, dim, spread * (width - self.first[place]))))
        _name_sizes(learner.model)

    def before_task(self, learner: Learner, task: Task) -> None:
        if task.index == 0:
            self.first = [stage.units for stage in self._stages(learner)]
            self.hidden = list(self.first)
        else:
            live = learner.model.named_parameters()
            self.start = tree.snapshot({name: each for name, each in live if name.startswith("trunk.")})
            weight, width = _heads(learner)[-1], _heads(learner)[-2].shape[1]
            generator = randomness.generator(learner.seed, "wider head", task.index)
            _widen(weight, 1, sequence.drawn((len(weight), width - weight.shape[1]), generator).to(weight))
            _name_sizes(learner.model)
        self.total, self.looked, self.split = torch.zeros((), device=learner.device), 0, task.index == 0

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        if learner.clock.task > 0:
            structure.hold_statistics(learner.model.trunk)
        return batch

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        self.total = self.total + loss.detach()
        return loss

    @torch.no_grad()
    def before_step(self, learner: Learner) -> None:
        if self.strength == 0:
            return
        found = tree.gradients({name: learner.params[name] for name in self.start if name in learner.params})
        gradients = {name: _block(each, self.start[name].shape) for name, each in found.items()}
        params = {name: _block(learner.params[name], self.start[name].shape) for name in found}
        for gradient, theta, start in tree.blocks(found, gradients, params, self.start):
            torch._foreach_add_(gradient, torch._foreach_sub(theta, start), alpha=self.strength)

    @torch.no_grad()
    def after_step(self, learner: Learner) -> None:
        self.looked += 1
        if self.looked == self.patience:
            if float(self.total) / self.patience > self.threshold:
                self._grow(learner)
            self.total, self.looked = torch.zeros_like(self.total), 0
        steps = learner.clock.steps
        if not self.split and learner.clock.step + 1 >= steps - round(self.retrain * steps):
            self._split(learner)

    def after_task(self, learner: Learner, task: Task) -> None:
        self.widths.append(list(self.hidden))

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        widths = self.widths[task] if task < len(self.widths) else self.hidden
        if task >= len(_heads(learner)):
            widths = self.first
        if widths == self.hidden:
            return super().logits(learner, inputs, task)
        used: Params = {}
        for place, width in enumerate(widths):
            for name, tensor, dim, spread in self._along(learner, place):
                if not name.startswith("head."):
                    used[name] = used.get(name, tensor).narrow(dim, 0, spread * width)
        logits: Tensor = functional_call(learner.model, used, (inputs, task))
        return logits

    def _grow(self, learner: Learner) -> None:
        """Give each hidden layer units that do not change its answers yet."""
        generator = randomness.generator(learner.seed, "growing", learner.clock.task, learner.clock.step)
        for place in range(len(self.hidden)):
            count = min(self.added, self._room(place))
            for name, tensor, dim, spread in self._along(learner, place):
                values = tensor.new_zeros(_with(tensor, dim, spread * count))
                if dim == 0 and tensor.dim() > 1:
                    values.copy_(sequence.drawn(tuple(values.shape), generator))
                elif dim == 0 and name.endswith(("weight", "running_var")):
                    values.fill_(1)
                _widen(tensor, dim, values, learner.optimizer.state.get(tensor))
            self.hidden[place] += count
        _name_sizes(learner.model)

    def _split(self, learner: Learner) -> None:
        """Give each old unit that drifted a copy that takes its place, and make it again what it was."""
        self.split = True
        drifted = [self._drifted(place, stage) for place, stage in enumerate(self._stages(learner))]
        # From the last layer to the first, so that a copy takes all of its unit's incoming weights along.
        for place, units in reversed(list(enumerate(drifted))):
            for name, tensor, dim, spread in self._along(learner, place):
                entries = (units.unsqueeze(1) * spread + torch.arange(spread, device=units.device)).flatten()
                _widen(tensor, dim, tensor.index_select(dim, entries), learner.optimizer.state.get(tensor))
                if isinstance(tensor, nn.Parameter):
                    before = torch.zeros_like(tensor)
                    if name in self.start:
                        _block(before, self.start[name].shape).copy_(self.start[name])
                    tensor.index_copy_(dim, entries, before.index_select(dim, entries))
            self.hidden[place] += len(units)
        _name_sizes(learner.model)

    def _drifted(self, place: int, stage: Stage) -> Tensor:
        """Return the old units, `[n]` int64 and no more than there is room for, that moved by more than `drift`."""
        was = self.start[f"{stage.name}.weight"]
        start = was.flatten(1)
        moved = (_block(stage.layer.weight, was.shape).flatten(1) - start).norm(dim=1)
        ratio = moved / start.norm(dim=1).clamp_min(torch.finfo(start.dtype).tiny)
        count = min(int((ratio > self.drift).sum()), self._room(place))
        units: Tensor = ratio.topk(count).indices
        return units

    def _room(self, place: int) -> int:
        return int(self.most * self.first[place]) - self.hidden[place]

    def _stages(self, learner: Learner) -> list[Stage]:
        if not self.stages:
            self.stages = sequence.stages(learner.model.trunk, "growing")
        return self.stages

    def _along(self, learner: Learner, place: int) -> list[tuple[str, Tensor, int, int]]:
        """Return what has entries for each unit of a layer: name, tensor, dimension, and entries a unit.

        That is the layer itself and its normalisation, by their first dimension, and by their second one the weights
        that the units feed: those of the next layer, or of the head of the newest task.
        """
        stages = self._stages(learner)
        stage = stages[place]
        names: dict[Tensor, str] = {each: name for name, each in tree.weights(learner.model).items()}
        own = [each for module in (stage.layer, *stage.rest) for each in tree.weights(module).values() if each.dim()]
        fed = stages[place + 1].layer.weight if place + 1 < len(stages) else _heads(learner)[-1]
        sides = [*((each, 0) for each in own), (fed, 1)]
        return [(names[each], each, dim, each.shape[dim] // stage.units) for each, dim in sides]


def _heads(learner: Learner) -> list[Tensor]:
    """Return the weight `[classes, width]` of the head of each task so far."""
    return [each for name, each in learner.model.head.named_parameters() if name.endswith(".weight")]


def _name_sizes(model: nn.Module) -> None:
    """Have layers say how wide they have become: their `repr`, and whoever exports them, read it there."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels = module.weight.shape[:2]
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            known = module.weight if module.weight is not None else module.running_mean
            module.num_features = module.num_features if known is None else len(known)


def _block(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return the view of the first entries of `tensor` along each dimension, as many as `shape` says."""
    return tensor[tuple(slice(count) for count in shape)]


def _with(tensor: Tensor, dim: int, count: int) -> list[int]:
    """Return the shape of `tensor` with `count` entries along `dim`."""
    return [count if each == dim else length for each, length in enumerate(tensor.shape)]


def _widen(tensor: Tensor, dim: int, values: Tensor, moments: dict[str, Tensor] | None = None) -> None:
    """Append `values` to a live `tensor` along `dim`, and zeros to what an optimiser keeps for it."""
    for key, moment in (moments or {}).items():
        if moments is not None and moment.shape == tensor.shape:
            moments[key] = torch.cat([moment, torch.zeros_like(values)], dim)
    # It stays the same tensor, which the optimiser and the learner know.
    tensor.data = torch.cat([tensor.detach(), values], dim)
    tensor.grad = None
