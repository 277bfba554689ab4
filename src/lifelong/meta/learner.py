"""What a meta-learner is: what it learns, its gradient over a batch of tasks, and how it answers for new ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lifelong import tree
from lifelong.meta.episodes import Episodes, Loss
from lifelong.meta.network import TaskNetwork
from lifelong.tree import Params


@dataclass(frozen=True)
class Problem:
    """What is to be learned.

    Args:
        network: answers for samples.
        loss: what adaptation descends, `[tasks]`.
        score: what is reported, `[tasks]`.
        classes: how many there are to train on, over all tasks; 0 where tasks have no classes.
        shared_labels: a label means the same in every task, as that of domains does.
    """

    network: TaskNetwork
    loss: Loss
    score: Loss
    classes: int = 0
    shared_labels: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a batch of tasks gives.

    Args:
        gradient: of the sum over tasks of the meta-loss, or what stands for it.
        losses: `[tasks]`, query losses after adaptation.
        scores: `[tasks]`.
        buffers: sum over tasks of what the buffers become.
    """

    gradient: Params
    losses: Tensor
    scores: Tensor
    buffers: Params = field(default_factory=dict)


@dataclass(frozen=True)
class MetaLearner:
    """A way to learn from many tasks how to learn the next one. Its fields are its settings.

    What is meta-learned is one tree `meta`: weights of the network (`trunk.` and `head.` before their names) and what
    the algorithm adds, such as learning rates. Weights with a task axis are made of it for each batch of tasks.
    `regression` says whether it can do tasks without classes, `per_step` whether tests may take statistics that were
    measured for each step, `needs_trunk` whether it learns or adapts the trunk alone, so that there must be weights,
    `any_ways` whether training may have other numbers of classes than tests.
    """

    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    regression: ClassVar[bool] = True
    per_step: ClassVar[bool] = False
    needs_trunk: ClassVar[bool] = False
    any_ways: ClassVar[bool] = False

    def parameters(self, problem: Problem) -> Params:
        """Return what is meta-learned, as it is at first."""
        return problem.network.initial()

    def buffers(self, problem: Problem) -> Params:
        """Return what is kept from batch to batch besides, and not by gradient."""
        return {}

    def loss(self, problem: Problem, meta: Params, episodes: Episodes, iteration: int) -> tuple[Tensor, Tensor]:
        """Return the meta-losses `[tasks]`, differentiable in `meta`, and the query outputs that they are judged by."""
        raise NotImplementedError

    def gradient(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes, iteration: int) -> Outcome:
        """Return the gradient of `meta`, leaves that need one, summed over the tasks of `episodes`."""
        losses, outputs = self.loss(problem, meta, episodes, iteration)
        found = torch.autograd.grad(losses.sum(), list(meta.values()), materialize_grads=True)
        scores = problem.score(outputs.detach(), episodes.query_targets)
        return Outcome(dict(zip(meta, found, strict=True)), losses.detach(), scores)

    def answers(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes) -> Iterator[Tensor]:
        """Yield the query outputs `[tasks, queries, outputs]` after 0, 1, 2, ... steps of adaptation."""
        raise NotImplementedError

    def training_answers(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes) -> Iterator[Tensor]:
        """Yield the query outputs after 0, 1, 2, ... inner steps of training; nothing where it has none."""
        return iter(())

    def settled(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes) -> Params:
        """Return the buffers that tests need, with what is to be measured on training tasks, `episodes`."""
        return buffers

    def pace(self) -> str:
        """Return the setting that is to be made smaller where adaptation diverges, as `name = value`."""
        return "lr"


def network_weights(meta: Params) -> Params:
    """Return those of `meta` that are weights of the network."""
    return {name: each for name, each in meta.items() if name.startswith(("trunk.", "head."))}


def task_dot(left: Params, right: Params) -> Tensor:
    """Return each task's inner product `[tasks]` of two trees with a task axis."""
    return torch.stack([(left[name] * each).flatten(1).sum(1) for name, each in right.items()]).sum(0)


def along(factors: Tensor, like: Tensor) -> Tensor:
    """Return `factors` `[tasks]` with as many dimensions as `like` `[tasks, ...]` has."""
    return factors.view(-1, *[1] * (like.dim() - 1))


def mean_of(outcomes: list[Outcome]) -> Outcome:
    """Return the mean over tasks of outcomes of several batches; losses and scores stay each task's own."""
    tasks = sum(len(each.losses) for each in outcomes)
    gradient, buffers = outcomes[0].gradient, outcomes[0].buffers
    for each in outcomes[1:]:
        gradient, buffers = tree.add(gradient, each.gradient), tree.add(buffers, each.buffers) if buffers else {}
    losses, scores = (torch.cat(each) for each in zip(*((o.losses, o.scores) for o in outcomes), strict=True))
    scaled = tree.scale(buffers, 1 / tasks) if buffers else {}
    return Outcome(tree.scale(gradient, 1 / tasks), losses, scores, scaled)
