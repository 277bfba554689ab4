"""iMAML: the meta-gradient of a task's solution, by the implicit function theorem instead of through the steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lifelong import tree
from lifelong.meta.episodes import Episodes
from lifelong.meta.inner_loop import answer
from lifelong.meta.learner import MetaLearner, Outcome, Problem, along, network_weights, task_dot
from lifelong.meta.network import shared
from lifelong.settings import setting
from lifelong.tree import Params


@dataclass(frozen=True)
class IMAML(MetaLearner):
    """Adapted weights solve `min_phi L_S(phi) + strength/2 ||phi - theta||^2`; memory does not grow with inner steps.

    The meta-gradient is `(I + H_S(phi) / strength)^-1 grad L_Q(phi)`, with the Hessian of the support loss alone,
    solved by conjugate gradients with Hessian-vector products. It is right where the inner problem is solved, so steps
    are many.

    We take the proximal term into every inner step, as the paper has it; the authors' code applies it once at the end.
    The system is the paper's; by its defaults their code solves `2 I + H / (strength + 10)`, where the second of the
    two ones is our `damping`.
    """

    family: ClassVar[str] = "gradient"
    paper: ClassVar[str] = "Rajeswaran et al. 2019, 1909.04630"

    steps: int = setting(16, "inner steps in training", ge=1)
    test_steps: int = setting(16, "inner steps in tests", ge=0)
    rate: float = setting(0.1, "inner learning rate", gt=0)
    strength: float = setting(2.0, "weight of the pull towards the initial weights", gt=0)
    solver_steps: int = setting(5, "steps of conjugate gradients", ge=0)
    damping: float = setting(0.0, "added to the matrix that is inverted, against curvature below -strength", ge=0)

    def gradient(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes, iteration: int) -> Outcome:
        begun = shared(tree.snapshot(network_weights(meta)), len(episodes))
        last = deque(self._path(problem, begun, episodes, self.steps), maxlen=1).pop()
        solved = {name: each.detach().requires_grad_() for name, each in last.items()}
        outputs = answer(problem, solved, episodes)
        losses = problem.loss(outputs, episodes.query_targets)
        wanted = _gradient(losses, solved)
        found = self._solve(problem, solved, episodes, wanted)
        gradient = {name: each.sum(0) for name, each in found.items()}
        return Outcome(gradient, losses.detach(), problem.score(outputs.detach(), episodes.query_targets))

    def answers(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes) -> Iterator[Tensor]:
        return self._answers(problem, meta, episodes, self.test_steps)

    def training_answers(self, problem: Problem, meta: Params, buffers: Params, episodes: Episodes) -> Iterator[Tensor]:
        return self._answers(problem, meta, episodes, self.steps)

    def pace(self) -> str:
        return f"rate = {self.rate:g}"

    def _answers(self, problem: Problem, meta: Params, episodes: Episodes, steps: int) -> Iterator[Tensor]:
        begun = shared(tree.snapshot(network_weights(meta)), len(episodes))
        for weights in self._path(problem, begun, episodes, steps):
            with torch.no_grad():
                outputs = answer(problem, weights, episodes)
            yield outputs

    def _path(self, problem: Problem, begun: Params, episodes: Episodes, steps: int) -> Iterator[Params]:
        weights = begun
        yield weights
        for _ in range(steps):
            weights = {name: each.detach().requires_grad_() for name, each in weights.items()}
            slopes = _gradient(_support_losses(problem, weights, episodes), weights)
            pulls = tree.scale(tree.sub(tree.map(torch.Tensor.detach, weights), begun), self.strength)
            weights = tree.sub(tree.map(torch.Tensor.detach, weights), tree.scale(tree.add(slopes, pulls), self.rate))
            yield weights

    def _solve(self, problem: Problem, solved: Params, episodes: Episodes, wanted: Params) -> Params:
        """Return x of `((1 + damping) I + H / strength) x = wanted`, each task's own (Hestenes & Stiefel 1952)."""
        slopes = _gradient(_support_losses(problem, solved, episodes), solved, create_graph=True)

        def product(vector: Params) -> Params:
            along_it = task_dot(slopes, vector).sum()
            curved = torch.autograd.grad(along_it, list(solved.values()), retain_graph=True, materialize_grads=True)
            curvature = tree.scale(dict(zip(solved, curved, strict=True)), 1 / self.strength)
            return tree.add(tree.scale(vector, 1 + self.damping), curvature)

        found, left, way = tree.zeros_like(wanted), wanted, wanted
        length = task_dot(left, left)
        tiny = torch.finfo(length.dtype).tiny
        alive = torch.ones_like(length, dtype=torch.bool)
        moved = ~alive
        for _ in range(self.solver_steps):
            image = product(way)
            curvature = task_dot(way, image)
            # Where the matrix is not positive along the way there is nothing to minimise: that task's solution stays.
            alive = alive & (curvature > 0)
            moved = moved | alive
            step = torch.where(alive, length / curvature, 0.0)
            found = {name: each + along(step, each) * way[name] for name, each in found.items()}
            left = {name: each - along(step, each) * image[name] for name, each in left.items()}
            before, length = length, task_dot(left, left)
            turn = length / before.clamp_min(tiny)
            way = {name: each + along(turn, each) * way[name] for name, each in left.items()}
        # Where no step was taken the gradient is that at the solution, which no steps at all come to.
        return {name: torch.where(along(moved, each), each, wanted[name]) for name, each in found.items()}


def _support_losses(problem: Problem, weights: Params, episodes: Episodes) -> Tensor:
    features = problem.network.features(weights, episodes.support)
    return problem.loss(problem.network.outputs(weights, features), episodes.support_targets)


def _gradient(losses: Tensor, weights: Params, create_graph: bool = False) -> Params:
    live = list(weights.values())
    found = torch.autograd.grad(losses.sum(), live, create_graph=create_graph, materialize_grads=True)
    return dict(zip(weights, found, strict=True))
