"""Riemannian walk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lifelong import tree
from lifelong.learner import Learner
from lifelong.methods.anchor import Anchor
from lifelong.methods.method import Method, state
from lifelong.methods.si import Path
from lifelong.settings import setting
from lifelong.streams.task import Task
from lifelong.tree import Params


@dataclass
class RWalk(Method):
    """Hold each parameter by its Fisher information plus what it contributed along the path, per Riemannian distance.

    Every `interval` steps `s += relu(dL) / (1/2 F dtheta^2 + xi)`, with `dL = -sum g dtheta` of the unregularised
    gradient over the interval, then `F <- alpha * mean(g^2) + (1 - alpha) * F`. At the end of a task the score is
    averaged with the older one, and both are scaled to 0..1 over all layers together: the weight is `F + s`
    (Chaudhry et al. 2018, 1801.10112, eq. 7 to 9 and algorithm 1).

    Our deviations: none known from the paper; `g^2` is the square of mini-batch means, as there, which is cheap and
    not the Fisher information that EWC measures. The authors' code updates the score as `1.5 s + 0.5 s_new`.
    """

    family: ClassVar[str] = "importance"
    paper: ClassVar[str] = "1801.10112"
    regression: ClassVar[bool] = True

    strength: float = setting(1.0, "weight of the penalty strength/2 * sum (F + s)(theta - theta*)^2, at least 0", ge=0)
    alpha: float = setting(0.9, "share of the newest gradients in the running Fisher, 0 to 1", ge=0, le=1)
    interval: int = setting(10, "steps between updates of the score", ge=1)
    xi: float = setting(0.1, "damping of the division by the squared distance, above 0", gt=0)
    path: Path = state(Path)
    fisher: Params = state(dict)
    squares: Params = state(dict)
    score: Params = state(dict)
    mark: Params = state(dict)
    steps: int = state(int)
    anchor: Anchor = state(Anchor)

    def before_task(self, learner: Learner, task: Task) -> None:
        zeros = tree.zeros_like(learner.params)
        self.fisher = {name: self.fisher.get(name, zero) for name, zero in zeros.items()}
        self.score = {name: self.score.get(name, torch.zeros_like(zero)) for name, zero in zeros.items()}
        self.squares, self.mark, self.steps = tree.zeros_like(zeros), tree.snapshot(learner.params), 0
        self.path.restart(learner.params)

    def after_backward(self, learner: Learner) -> None:
        self.path.observe(learner.params, self.mark)
        gradients = tree.gradients({name: learner.params[name] for name in self.squares})
        for squares, gradient in tree.blocks(gradients, self.squares, gradients):
            torch._foreach_addcmul_(squares, gradient, gradient)

    def before_step(self, learner: Learner) -> None:
        self.anchor.pull(learner.params, self.strength)

    def after_step(self, learner: Learner) -> None:
        self.steps += 1
        if self.steps % self.interval == 0:
            self._update(learner.params, self.interval)

    def after_task(self, learner: Learner, task: Task) -> None:
        if self.steps % self.interval:
            self._update(learner.params, self.steps % self.interval)
        self.path, self.squares, self.mark = Path(), {}, {}
        for name in self.score.keys() & self.anchor.weight.keys():
            self.score[name].div_(2)  # it was added to on top of the older tasks' score, and their mean is wanted
        fisher, score = _unit(self.fisher), _unit(self.score)
        self.anchor.recentre(tree.add(fisher, score), learner.params)

    @torch.no_grad()
    def _update(self, params: Params, steps: int) -> None:
        self.path.settle(params, self.mark)
        trees = (self.score, self.fisher, self.squares, self.path.integral, self.mark, params)
        for score, fisher, squares, integral, mark, theta in tree.blocks(self.score, *trees):
            distance = torch._foreach_sub(theta, mark)
            torch._foreach_mul_(distance, distance)
            torch._foreach_mul_(distance, fisher)
            torch._foreach_div_(distance, 2)
            torch._foreach_add_(distance, self.xi)
            torch._foreach_clamp_min_(integral, 0)
            torch._foreach_addcdiv_(score, integral, distance)
            torch._foreach_div_(squares, steps)
            torch._foreach_lerp_(fisher, squares, self.alpha)
            torch._foreach_copy_(mark, theta)
            torch._foreach_zero_(squares)
            torch._foreach_zero_(integral)


def _unit(importance: Params) -> Params:
    """Return `importance` scaled to 0..1 by the least and the greatest of all its numbers."""
    low = torch.stack([tensor.min() for tensor in importance.values()]).min()
    high = torch.stack([tensor.max() for tensor in importance.values()]).max()
    # A score that is the same everywhere tells parameters apart no more than 0 does.
    span = (high - low).clamp_min(torch.finfo(low.dtype).tiny)
    return {name: (tensor - low) / span for name, tensor in importance.items()}
