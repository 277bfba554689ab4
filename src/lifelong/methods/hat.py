"""Hard attention to the task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lifelong import randomness, tree
from lifelong.learner import Batch, Learner
from lifelong.methods import sequence, structure
from lifelong.methods.method import Method, state, transient
from lifelong.methods.sequence import Stage
from lifelong.methods.structure import Hold
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Task
from lifelong.tree import Params

# Beyond it exp overflows or sigmoid is flat; the paper's code has the same two bounds.
_MOST_EXPONENT, _MOST_EMBEDDING = 50.0, 6.0


@dataclass
class HAT(Method):
    """Learn for each task which units take part, and hold the weights between units that old tasks use.

    Each unit of a hidden layer is multiplied by `a = sigmoid(s e)` with an embedding `e ~ N(0, 1)` of its own for each
    task (Serra et al. 2018, 1801.01423). At step b of B in a cycle `s = 1/s_max + (s_max - 1/s_max) (b-1)/(B-1)` (eq.
    3). The gradient of e is multiplied by `s_max (cosh(s e) + 1) / (s (cosh(e) + 1))` to make up for the annealing (eq.
    5), and the loss gets `sparsity * sum a (1 - u) / sum (1 - u)` (eq. 6), with u the units that old tasks use.

    Our deviation: at prediction time and for u attention is binary, `1[e > 0]`, the limit of the paper's s_max. So the
    gradient's factor `1 - min(u_i, u_j)` (eq. 2) is 0 or 1, weights between used units are put back to the bit after
    each step, and old answers stay the same to the bit. Statistics of normalisation are frozen after the first task.

    The trunk is a sequence of linear or convolution layers, and what lies between them treats each unit by itself.
    """

    family: ClassVar[str] = "structural"
    paper: ClassVar[str] = "1801.01423"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.TASK,)
    needs_task_id: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    alone: ClassVar[str] = "what old tasks use never moves, and others would not see its attention"
    regression: ClassVar[bool] = True

    sparsity: float = setting(0.75, "weight of the penalty on units that no old task uses, at least 0", ge=0)
    s_max: float = setting(400.0, "steepness of the attention at the end of a cycle, above 1", gt=1)
    cycles: int = setting(1, "times that the steepness rises within a task; the paper has one an epoch", ge=1)
    embeddings: Params = state(dict)
    used: Params = state(dict)
    masks: list[Params] = state(list)
    stages: list[Stage] = transient(list)
    attention: list[Tensor] = transient(list)
    hold: Hold | None = transient(lambda: None)

    def setup(self, learner: Learner) -> None:
        """Look at the trunk.

        Raises:
            InputError: it is no sequence of layers, a normalisation mixes its units, or tasks share a head.
        """
        structure.need_heads(learner, "hat")
        sequence.need_units_apart(sequence.stages(learner.model.trunk, "hat"), "hat")

    def before_task(self, learner: Learner, task: Task) -> None:
        generator = randomness.generator(learner.seed, "hat", task.index)
        for stage in self._stages(learner):
            drawn = torch.randn(stage.units, generator=generator).to(stage.layer.weight)
            # The same tensors for all tasks, as an optimiser that goes on knows them.
            self.embeddings.setdefault(stage.name, torch.empty_like(drawn)).detach().copy_(drawn)
            self.used.setdefault(stage.name, torch.zeros_like(drawn))
        self.hold = None

    def trainable(self, learner: Learner) -> Params:
        own = {f"embeddings.{name}": each.requires_grad_() for name, each in self.embeddings.items()}
        return {**tree.parameters(learner.model), **own}

    def forward(self, learner: Learner, batch: Batch) -> Tensor:
        if learner.clock.task > 0:
            structure.hold_statistics(learner.model.trunk)
        steepness = self._steepness(learner)
        self.attention = [torch.sigmoid(steepness * each) for each in self.embeddings.values()]
        batch.features = sequence.through_gates(self._stages(learner), self.attention, batch.inputs)
        logits: Tensor = learner.model.head(batch.features, batch.task)
        return logits

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        free = 1 - torch.cat(list(self.used.values()))
        return loss + self.sparsity * (torch.cat(self.attention) * free).sum() / free.sum().clamp_min(1)

    @torch.no_grad()
    def before_step(self, learner: Learner) -> None:
        self._held(learner).mask(learner.params)
        s = self._steepness(learner)
        for e in self.embeddings.values():
            if e.grad is not None:
                steep = torch.cosh((s * e).clamp(-_MOST_EXPONENT, _MOST_EXPONENT)) + 1
                e.grad.mul_(self.s_max / s * steep / (torch.cosh(e) + 1))

    @torch.no_grad()
    def after_step(self, learner: Learner) -> None:
        self._held(learner).restore(learner.params)
        for each in self.embeddings.values():
            each.clamp_(-_MOST_EMBEDDING, _MOST_EMBEDDING)

    def after_task(self, learner: Learner, task: Task) -> None:
        mask = {name: each.detach() > 0 for name, each in self.embeddings.items()}
        self.masks.append(mask)
        self.used = {name: torch.maximum(each, mask[name].to(each)) for name, each in self.used.items()}
        self.attention, self.hold = [], None

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        if not self.embeddings:
            return super().logits(learner, inputs, task)
        if task < len(self.masks):
            gates = [each.to(inputs) for each in self.masks[task].values()]
        else:
            gates = [(each > 0).to(inputs) for each in self.embeddings.values()]
        features = sequence.through_gates(self._stages(learner), gates, inputs)
        logits: Tensor = learner.model.head(features, task)
        return logits

    def _steepness(self, learner: Learner) -> float:
        length = math.ceil(learner.clock.steps / self.cycles)
        done = learner.clock.step % length / (length - 1) if length > 1 else 1.0
        return 1 / self.s_max + (self.s_max - 1 / self.s_max) * done

    def _stages(self, learner: Learner) -> list[Stage]:
        if not self.stages:
            self.stages = sequence.stages(learner.model.trunk, "hat")
        return self.stages

    def _held(self, learner: Learner) -> Hold:
        """Return what holds all that old tasks use; made anew where the run is resumed."""
        if self.hold is None:
            held = self._used_parameters(learner)
            self.hold = Hold.of(learner.params, {name: each for name, each in held.items() if name in learner.params})
        return self.hold

    def _used_parameters(self, learner: Learner) -> Params:
        """Return where parameters of the trunk serve old tasks, by their names: weights between used units."""
        names: dict[Tensor | None, str] = {each: name for name, each in learner.model.named_parameters()}
        held: Params = {}
        last: Tensor | None = None
        for stage in self._stages(learner):
            out, weight = self.used[stage.name] > 0, stage.layer.weight
            width = weight.shape[1]
            feeding = out.new_full((width,), bool(self.masks)) if last is None else sequence.spread(last, width)
            pairs = out.unsqueeze(1) & feeding
            held[names[weight]] = pairs.view(*pairs.shape, *[1] * (weight.dim() - 2)).expand_as(weight)
            for early in _parameters(stage.before):
                held[names[early]] = torch.full_like(early, bool(self.masks), dtype=torch.bool)
            for own in _parameters(stage.rest):
                held[names[own]] = sequence.spread(out, len(own))
            if stage.layer.bias is not None:
                held[names[stage.layer.bias]] = out
            last = out
        return held


def _parameters(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [each for module in modules for each in module.parameters()]
