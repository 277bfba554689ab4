"""Distillation into the merge after a task: what the newest expert says of the task, and the merge of others.

Only the samples of the task at hand are there to ask about. Of its own outputs its expert is asked; of the outputs of
earlier tasks the merge that answered so far, as in learning without forgetting. Where all tasks share their outputs the
merge is held to what it says itself as it is made: it knows more than the one before it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lifelong.curvature.per_sample import evaluating
from lifelong.learner import Learner
from lifelong.merging.adaptation import adapt
from lifelong.merging.distillation import divergence
from lifelong.models.heads import MultiHead
from lifelong.streams.task import Scenario
from lifelong.tree import Params

# As in LwF.
_TEMPERATURE = 2.0


def distilled(
    learner: Learner,
    merged: Params,
    buffers: Params,
    before: Params,
    sizes: Sequence[int],
    batches: Sequence[Tensor],
    *,
    epochs: int,
    learning_rate: float,
    numbers: bool = False,
    apart: Collection[int] = (),
) -> Params:
    """Return `merged` after some steps of `r KL(expert || merge) + (1 - r) mean_k KL(before || merge)`.

    r is 1 over the number of tasks that are merged, k goes over the outputs of the earlier ones. Where these are
    shared, `merged` as it is given stands for `before`.

    Of a number that is predicted the KL is that of Gaussians of deviation 1, `1/2 (f_teacher - f)^2`.

    Args:
        learner: its network is the expert of the task that it has just learned, the t-th.
        merged: weights of the merge, by their names in the network.
        buffers: that go with them.
        before: weights and buffers that answered before the task; empty where it is the first. Not asked where tasks
            share their outputs.
        sizes: outputs that each task so far brought.
        batches: inputs of the task, as the network takes them.
        epochs: passes over them.
        learning_rate: of Adam.
        numbers: some task predicts a number: those with one output.
        apart: indices of earlier tasks that answer with weights of their own.
    """
    groups = _Groups(learner, sizes, apart)
    new = 1 / (len(sizes) - len(apart))
    held = {**merged, **buffers} if groups.twice else before

    def told(outputs: Tensor) -> Tensor:
        return outputs if numbers and outputs.shape[1] == 1 else (outputs / _TEMPERATURE).softmax(1)

    def away(student: Tensor, teacher: Tensor) -> Tensor:
        if numbers and teacher.shape[1] == 1:
            return F.mse_loss(student, teacher) / 2
        return divergence(student, teacher, _TEMPERATURE)

    with torch.no_grad(), evaluating(learner.model), learner.precision():
        taught = []
        for inputs in batches:
            expert = groups.split(groups(inputs))
            old = groups.split(functional_call(groups, _within(held), (inputs,))) if before else expert
            taught.append((inputs, torch.cat([told(each) for each in [*old[:-1], expert[-1]]], 1)))

    def loss(logits: Tensor, wanted: Tensor) -> Tensor:
        *old, own = (
            away(student, teacher) for student, teacher in zip(groups.split(logits), groups.split(wanted), strict=True)
        )
        return new * own + (1 - new) * torch.stack(old).mean() if old else own

    with learner.precision():
        found = adapt(
            groups, _within({**merged, **buffers}), taught, epochs=epochs, learning_rate=learning_rate, loss=loss
        )
    return {name: found[f"network.{name}"] for name in merged}


class _Groups(nn.Module):
    """The outputs of a network side by side, in groups that one teacher each speaks for; the last are the new task's.

    Task-incremental they are the heads, class-incremental the old classes and the new ones. Where all tasks share their
    outputs these stand there twice, for both teachers.
    """

    def __init__(self, learner: Learner, sizes: Sequence[int], apart: Collection[int]) -> None:
        super().__init__()
        self.network, self.last = learner.model, len(sizes) - 1
        own = isinstance(learner.model.head, MultiHead)
        each_its_own = learner.scenario is Scenario.TASK and own
        self.heads = [task for task in range(len(sizes)) if task not in apart] if each_its_own else [self.last]
        self.twice = self.last > 0 and len(self.heads) == 1 and learner.scenario is not Scenario.CLASS
        self.old, self.new = (sum(sizes[:-1]) if learner.scenario is Scenario.CLASS else 0), sizes[-1]
        self.widths: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.network.features(inputs)
        found = [self.network.head(features, task) for task in self.heads]
        if self.twice:
            found = found * 2
        if self.old:
            found = [found[0][:, : self.old], found[0][:, self.old : self.old + self.new]]
        self.widths = [each.shape[1] for each in found]
        return torch.cat(found, 1)

    def split(self, outputs: Tensor) -> list[Tensor]:
        """Return the groups of what `forward` returns."""
        return list(outputs.split(self.widths, 1))


def _within(weights: Params) -> Params:
    return {f"network.{name}": each for name, each in weights.items()}
