"""The yardstick: learn to tell all training classes apart, then give each task a new head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong import randomness
from lifelong.meta.episodes import Episodes
from lifelong.meta.inner_loop import answer, descend
from lifelong.meta.learner import MetaLearner, Outcome, Problem, network_weights
from lifelong.meta.network import shared
from lifelong.settings import setting
from lifelong.tree import Params


@dataclass(frozen=True)
class Pretraining(MetaLearner):
    """Supervised learning of all training classes; abstract. Episodes are but its batches.

    Batch norm's statistics are those of each episode, as they will be in a test. A test trains a new head, zero at
    first, with or without the trunk; of domains, whose labels mean the same in every task, the head that was trained.
    """

    family: ClassVar[str] = "transfer"
    regression: ClassVar[bool] = False
    any_ways: ClassVar[bool] = True

    test_steps: int = setting(50, "steps on a task's support samples in tests", ge=0)
    rate: float = setting(0.05, "their learning rate", gt=0)

    def adapted(self, weights: Params) -> list[str]:
        """Return the names of the weights that a test trains."""
        raise NotImplementedError

    def parameters(self, problem: Problem) -> Params:
        weights = problem.network.initial()
        trunk = {name: each for name, each in weights.items() if name.startswith("trunk.")}
        like = weights["head.weight"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.derive(0, "all classes"))
            whole = torch.nn.Linear(like.shape[1], problem.classes, device=like.device, dtype=like.dtype)
        return trunk | {"classes.weight": whole.weight.detach(), "classes.bias": whole.bias.detach()}

    def gradient(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes, iteration: int) -> Outcome:
        assert episodes.classes is not None
        inputs = torch.cat([episodes.support, episodes.query], 1)
        local = torch.cat([episodes.support_targets, episodes.query_targets], 1)
        targets = episodes.classes.gather(1, local)
        features = problem.network.features(shared(network_weights(meta), len(episodes)), inputs)
        outputs = F.linear(features, meta["classes.weight"], meta["classes.bias"])
        losses = problem.loss(outputs, targets)
        found = torch.autograd.grad(losses.sum(), list(meta.values()), materialize_grads=True)
        gradient = dict(zip(meta, found, strict=True))
        return Outcome(gradient, losses.detach(), problem.score(outputs.detach(), targets))

    def answers(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes) -> Iterator[Tensor]:
        weights = shared(network_weights(meta), len(episodes))
        ways = int(episodes.support_targets.max()) + 1
        trained = {name: meta[f"classes.{name}"] for name in ("weight", "bias")}
        begun = (
            trained
            if problem.shared_labels
            else {name: each.new_zeros(ways, *each.shape[1:]) for name, each in trained.items()}
        )
        weights = weights | shared({f"head.{name}": each for name, each in begun.items()}, len(episodes))
        path = descend(
            problem,
            weights,
            episodes,
            steps=self.test_steps,
            names=self.adapted(weights),
            rate=lambda step, name: self.rate,
            graph="none",
        )
        for each in path:
            with torch.no_grad():
                outputs = answer(problem, each, episodes)
            yield outputs

    def pace(self) -> str:
        return f"rate = {self.rate:g}"


@dataclass(frozen=True)
class LinearProbe(Pretraining):
    """Supervised pretraining; a test trains a new head on features that stay as they are."""

    def adapted(self, weights: Params) -> list[str]:
        return [name for name in weights if name.startswith("head.")]


@dataclass(frozen=True)
class FineTuning(Pretraining):
    """Supervised pretraining; a test trains a new head and the trunk together."""

    def adapted(self, weights: Params) -> list[str]:
        return list(weights)
