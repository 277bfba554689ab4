"""Reptile: the initial weights go towards where training on each task leads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lifelong import tree
from lifelong.meta.episodes import Episodes
from lifelong.meta.inner_loop import answer
from lifelong.meta.learner import MetaLearner, Outcome, Problem, network_weights
from lifelong.meta.network import shared
from lifelong.settings import setting
from lifelong.tree import Params

_DECAY, _EPSILON = 0.999, 1e-8


@dataclass(frozen=True)
class Reptile(MetaLearner):
    """`theta <- theta + e mean(theta'_task - theta)`: here `theta - theta'` is the gradient, and e the outer rate.

    theta' comes from several steps on mini-batches of one task, support and query samples taken together, so `shots +
    queries` are the paper's training shots. The paper's outer step is `optimizer: sgd, lr: 1, schedule: linear`; with
    an outer Adam it is another algorithm. Its inner optimiser is Adam without momentum (beta_1 = 0), whose second
    moment goes on from task to task.

    Our deviations: mini-batches have the same number of samples of each class, and so are no more than a class has
    samples; none is repeated before all have been seen. Tasks of a batch begin with the same second moment, and the
    mean of what they leave goes on. In tests each step takes all support samples.
    """

    family: ClassVar[str] = "gradient"
    paper: ClassVar[str] = "Nichol et al. 2018, 1803.02999"

    steps: int = setting(5, "inner steps in training", ge=1)
    test_steps: int = setting(50, "inner steps in tests", ge=0)
    batches: int = setting(5, "mini-batches that a task's samples are divided into", ge=1)
    inner: Literal["adam", "sgd"] = setting("adam", "inner optimiser; adam without momentum")
    rate: float = setting(1e-3, "inner learning rate", gt=0)

    def buffers(self, problem: Problem) -> Params:
        if self.inner == "sgd":
            return {}
        # The count of steps corrects the second moment for its start at zero.
        weights = problem.network.initial()
        start = torch.zeros((), dtype=torch.float64)
        return {**tree.zeros_like(weights), "count": start}

    def gradient(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes, iteration: int) -> Outcome:
        begun = shared(tree.snapshot(network_weights(meta)), len(episodes))
        path = self._training_path(problem, begun, buffers, episodes)
        weights, moments = deque(path, maxlen=1).pop()
        with torch.no_grad():
            outputs = answer(problem, weights, episodes)
            losses = problem.loss(outputs, episodes.query_targets)
        gradient = {name: (begun[name] - each.detach()).sum(0) for name, each in weights.items()}
        left = {name: each.sum(0) for name, each in moments.items()}
        return Outcome(gradient, losses, problem.score(outputs, episodes.query_targets), left)

    def answers(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes) -> Iterator[Tensor]:
        begun = shared(tree.snapshot(network_weights(meta)), len(episodes))
        yield self._answer(problem, begun, episodes)
        moments = shared(buffers, len(episodes))
        support = (episodes.support, episodes.support_targets)
        for weights, _ in self._path(problem, begun, moments, *support, self.test_steps, 1):
            yield self._answer(problem, weights, episodes)

    def training_answers(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes) -> Iterator[Tensor]:
        begun = shared(tree.snapshot(network_weights(meta)), len(episodes))
        yield self._answer(problem, begun, episodes)
        for weights, _ in self._training_path(problem, begun, buffers, episodes):
            yield self._answer(problem, weights, episodes)

    def pace(self) -> str:
        return f"rate = {self.rate:g}"

    def _training_path(
        self, problem: Problem, begun: Params, buffers: Params, episodes: Episodes
    ) -> Iterator[tuple[Params, Params]]:
        inputs = torch.cat([episodes.support, episodes.query], 1)
        targets = torch.cat([episodes.support_targets, episodes.query_targets], 1)
        moments = shared(buffers, len(episodes))
        return self._path(problem, begun, moments, inputs, targets, self.steps, self.batches)

    def _path(
        self,
        problem: Problem,
        weights: Params,
        moments: Params,
        inputs: Tensor,
        targets: Tensor,
        steps: int,
        batches: int,
    ) -> Iterator[tuple[Params, Params]]:
        parts = mini_batches(inputs, targets, batches)
        for step in range(steps):
            some, labels = parts[step % len(parts)]
            weights = {name: each.detach().requires_grad_() for name, each in weights.items()}
            outputs = problem.network.outputs(weights, problem.network.features(weights, some))
            losses = problem.loss(outputs, labels)
            found = torch.autograd.grad(losses.sum(), list(weights.values()), materialize_grads=True)
            slopes = dict(zip(weights, found, strict=True))
            with torch.no_grad():
                moves, moments = self._moves(slopes, moments)
                weights = tree.sub(weights, tree.scale(moves, self.rate))
            yield weights, moments

    def _moves(self, slopes: Params, moments: Params) -> tuple[Params, Params]:
        if self.inner == "sgd":
            return slopes, moments
        count = moments["count"] + 1
        squares = {name: _DECAY * moments[name] + (1 - _DECAY) * each.square() for name, each in slopes.items()}
        # Adam's correction by the whole number of steps so far, which is the same for all tasks.
        correction = 1 - _DECAY ** float(count.flatten()[0])
        moves = {name: each / ((squares[name] / correction).sqrt() + _EPSILON) for name, each in slopes.items()}
        return moves, {**squares, "count": count}

    def _answer(self, problem: Problem, weights: Params, episodes: Episodes) -> Tensor:
        with torch.no_grad():
            return answer(problem, weights, episodes)


def mini_batches(inputs: Tensor, targets: Tensor, most: int) -> list[tuple[Tensor, Tensor]]:
    """Return the samples of each task and their targets in `most` parts, each with equally many of every class.

    Args:
        inputs: `[tasks, samples, ...]`.
        targets: `[tasks, samples]` labels, each as often as the others; or numbers `[tasks, samples, ...]`, of which
            every so many-th one is taken.
        most: parts at most; there are no more than samples of a class.
    """
    numbers, count = targets.is_floating_point(), targets.shape[1]
    tasks = torch.arange(len(targets), device=targets.device).unsqueeze(1)
    place = torch.arange(count, device=targets.device)
    order = place.expand(len(targets), -1) if numbers else targets.argsort(dim=1, stable=True)
    of_a_class = count if numbers else count // len(targets[0].unique())
    parts = min(most, of_a_class)
    picked = (order[:, place % of_a_class % parts == part] for part in range(parts))
    return [(inputs[tasks, rows], targets[tasks, rows]) for rows in picked]
