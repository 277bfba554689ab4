"""Gradient descent on the support samples of many tasks at once: what MAML and its relatives share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from lifelong.meta import step_statistics
from lifelong.meta.episodes import Episodes
from lifelong.meta.learner import MetaLearner, Problem, along, network_weights, task_dot
from lifelong.meta.network import shared
from lifelong.settings import setting
from lifelong.tree import Params

# (step, name of a weight) -> the rate of that step, which broadcasts over `[tasks, ...]`.
Rate: TypeAlias = Callable[[int, str], "float | Tensor"]

# Whether the steps can be differentiated through (second), stand in the way as constants (first), or end the graph.
Graph = Literal["second", "first", "none"]


def descend(
    problem: Problem,
    weights: Params,
    episodes: Episodes,
    *,
    steps: int,
    names: Sequence[str],
    rate: Rate,
    graph: Graph,
    clip: float | None = None,
) -> Iterator[Params]:
    """Yield the weights of each task before and after each step `theta <- theta - rate * grad L_S(theta)`.

    Where no weight of the trunk is adapted the support samples' features are computed once for all steps.

    Args:
        weights: each `[tasks, ...]`.
        episodes: whose support samples are learned from.
        steps: how many.
        names: of the weights that are adapted; the others stay.
        rate: of a step and a weight.
        graph: `second` keeps what a derivative through the steps needs, `first` treats gradients as constants, so that
            the derivative of the adapted weights by the initial ones is the identity, and `none` detaches.
        clip: greatest norm of a task's gradient.
    """
    fixed = not any(name.startswith("trunk.") for name in names)
    features = problem.network.features(weights, episodes.support) if fixed and steps else None
    yield weights
    for step in range(steps):
        if graph == "none":
            weights = weights | {name: weights[name].detach().requires_grad_() for name in names}
        seen = problem.network.features(weights, episodes.support) if features is None else features
        losses = problem.loss(problem.network.outputs(weights, seen), episodes.support_targets)
        live = [weights[name] for name in names]
        found = torch.autograd.grad(losses.sum(), live, create_graph=graph == "second", materialize_grads=True)
        slopes = clipped(dict(zip(names, found, strict=True)), clip)
        weights = weights | {name: weights[name] - rate(step, name) * slopes[name] for name in names}
        yield weights


def clipped(slopes: Params, most: float | None) -> Params:
    """Return gradients with a task axis, those of a task scaled down where their norm is above `most`."""
    if most is None:
        return slopes
    norms = task_dot(slopes, slopes).clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    factors = (most / norms).clamp(max=1)
    return {name: each * along(factors, each) for name, each in slopes.items()}


@dataclass(frozen=True)
class InnerLoop(MetaLearner):
    """Adaptation by gradient descent; abstract. What follows it says which weights move, how fast, and from where."""

    per_step: ClassVar[bool] = True

    steps: int = setting(1, "inner steps in training", ge=0)
    test_steps: int = setting(10, "inner steps in tests", ge=0)
    rate: float = setting(0.4, "inner learning rate, on the mean loss of a task's support samples", gt=0)
    clip: float | None = setting(None, "greatest norm of a task's inner gradient", gt=0)

    def adapted(self, weights: Params) -> list[str]:
        """Return the names of the weights that the inner loop moves."""
        return list(weights)

    def begin(self, problem: Problem, meta: Params, episodes: Episodes) -> Params:
        """Return the weights of each task, `[tasks, ...]`, that the inner loop starts from."""
        return shared(network_weights(meta), len(episodes))

    def rates(self, meta: Params) -> Rate:
        """Return the rate of each step and weight."""
        return lambda step, name: self.rate

    def order(self, iteration: int) -> Graph:
        """Return whether the gradient goes through the inner steps."""
        return "second"

    def shares(self, iteration: int) -> list[float]:
        """Return what the query loss after 0, 1, ..., `steps` steps counts in the meta-loss."""
        return [0.0] * self.steps + [1.0]

    def path(self, problem: Problem, meta: Params, episodes: Episodes, steps: int, graph: Graph) -> Iterator[Params]:
        """Yield each task's weights before and after each step."""
        weights = self.begin(problem, meta, episodes)
        return descend(
            problem,
            weights,
            episodes,
            steps=steps,
            names=self.adapted(weights),
            rate=self.rates(meta),
            graph=graph,
            clip=self.clip,
        )

    def loss(self, problem: Problem, meta: Params, episodes: Episodes, iteration: int) -> tuple[Tensor, Tensor]:
        total, outputs = torch.zeros(()), torch.empty(0)
        path = self.path(problem, meta, episodes, self.steps, self.order(iteration))
        for share, weights in zip(self.shares(iteration), path, strict=True):
            if share:
                outputs = answer(problem, weights, episodes)
                total = share * problem.loss(outputs, episodes.query_targets) + total
        return total, outputs

    def answers(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes) -> Iterator[Tensor]:
        per_step = problem.network.statistics == "per-step"
        for step, weights in enumerate(self.path(problem, meta, episodes, self.test_steps, "none")):
            with torch.no_grad():
                fixed = step_statistics.at(buffers, step) if per_step else None
                outputs = answer(problem, weights, episodes, fixed)
            yield outputs

    def training_answers(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes) -> Iterator[Tensor]:
        for weights in self.path(problem, meta, episodes, self.steps, "none"):
            with torch.no_grad():
                outputs = answer(problem, weights, episodes)
            yield outputs

    def settled(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes) -> Params:
        if problem.network.statistics != "per-step" or not problem.network.normalises:
            return buffers
        path = self.path(problem, meta, episodes, self.test_steps, "none")
        return buffers | step_statistics.measured(problem.network, path, episodes.query)

    def pace(self) -> str:
        return f"rate = {self.rate:g}"


def answer(problem: Problem, weights: Params, episodes: Episodes, fixed: Params | None = None) -> Tensor:
    """Return the query outputs under each task's weights; `fixed` as `TaskNetwork.query_features` takes it."""
    features = problem.network.query_features(weights, episodes.support, episodes.query, fixed)
    return problem.network.outputs(weights, features)
