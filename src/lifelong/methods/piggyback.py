"""Piggyback: a binary mask a task over weights that stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from lifelong import tree
from lifelong.learner import Batch, Learner, freeze
from lifelong.methods import structure
from lifelong.methods.method import Method, state
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Task
from lifelong.tree import Params


@dataclass
class Piggyback(Method):
    """Freeze the trunk's weights W and learn for each task which of them take part: `layer(x; 1[r > threshold] * W)`.

    The real-valued scores r start at `init` and get the gradient `dr = dL/d(mask W) * W`, straight through the step
    function and without clipping (Mallya et al. 2018, 1801.06519, section 3). Of a finished task one bit a weight is
    kept; there is one tree of scores, that of the task at hand, and a task to come is answered with all weights.
    Biases and normalisation, with its statistics, stay as the backbone has them. The paper trains r by Adam at 1e-4
    without weight decay, from a backbone that was trained on ImageNet.

    Masked are the parameters of the trunk with two or more dimensions.
    """

    family: ClassVar[str] = "structural"
    paper: ClassVar[str] = "1801.06519"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.TASK,)
    needs_task_id: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    alone: ClassVar[str] = "weights and old masks never move, so there is nothing to hold or to replay for"
    regression: ClassVar[bool] = True

    init: float = setting(1e-2, "score of every weight at the start of a task; above the threshold it takes part")
    threshold: float = setting(5e-3, "score above which a weight takes part")
    learn_first: bool = setting(True, "the first task trains the backbone, unmasked; false for a pretrained one")
    scores: Params = state(dict)
    masks: list[Params] = state(list)

    def setup(self, learner: Learner) -> None:
        structure.need_heads(learner, "piggyback")

    def before_task(self, learner: Learner, task: Task) -> None:
        if task.index == 0 and self.learn_first:
            return
        freeze(learner, learner.model.trunk)
        # The same tensors for all tasks, as an optimiser that goes on knows them.
        for name, weight in _weights(learner).items():
            self.scores.setdefault(name, torch.full_like(weight, self.init, requires_grad=False))

    def trainable(self, learner: Learner) -> Params:
        if learner.clock.task == 0 and self.learn_first:
            return tree.parameters(learner.model)
        heads = {f"head.{name}": each for name, each in learner.model.head.named_parameters()}
        return {**heads, **{f"scores.{name}": each.requires_grad_() for name, each in self.scores.items()}}

    def forward(self, learner: Learner, batch: Batch) -> Tensor:
        if not self.scores:
            return super().forward(learner, batch)
        structure.hold_statistics(learner.model.trunk)
        batch.features = functional_call(learner.model.trunk, self._masked(learner), (batch.inputs,))
        logits: Tensor = learner.model.head(batch.features, batch.task)
        return logits

    def after_task(self, learner: Learner, task: Task) -> None:
        # The backbone's own task has no scores, and so no mask.
        self.masks.append({name: pack(each.detach() > self.threshold) for name, each in self.scores.items()})
        for each in self.scores.values():
            each.detach().fill_(self.init)

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        if task < len(self.masks):
            live = _weights(learner)
            weights = {name: live[name] * unpack(bits, live[name]) for name, bits in self.masks[task].items()}
        else:
            weights = self._masked(learner)
        features = functional_call(learner.model.trunk, weights, (inputs,))
        logits: Tensor = learner.model.head(features, task)
        return logits

    def _masked(self, learner: Learner) -> Params:
        """Return the weights that the task at hand makes use of; gradients reach the scores."""
        live = _weights(learner)
        return {name: masked(each, live[name], self.threshold) for name, each in self.scores.items()}


def masked(scores: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """Return `1[scores > threshold] * weight`, whose derivative by the scores is taken to be `weight`."""
    result: Tensor = _Mask.apply(scores, weight, threshold)  # type: ignore[no-untyped-call]
    return result


class _Mask(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, weight: Tensor, threshold: float) -> Tensor:
        ctx.save_for_backward(weight)
        # Comparing into numbers and multiplying is several times as fast on the CPU as selecting by booleans.
        return torch.gt(scores, threshold, out=torch.empty_like(weight)).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] * weight, None, None


def pack(mask: Tensor) -> Tensor:
    """Return a boolean tensor of any shape as uint8 `[ceil(elements / 8)]`, the first element in the lowest bit."""
    padded = torch.nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, like: Tensor) -> Tensor:
    """Return what `pack` made `packed` of, as 0 and 1 in the shape and dtype of `like`."""
    bits = (packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten()[: like.numel()].view(like.shape).to(like.dtype)


def _weights(learner: Learner) -> Params:
    """Return the parameters that are masked, by their names in the trunk."""
    return {name: each for name, each in learner.model.trunk.named_parameters() if each.dim() > 1}
