"""Synaptic intelligence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from lifelong import tree
from lifelong.learner import Learner
from lifelong.methods.anchor import Anchor
from lifelong.methods.method import Method, state
from lifelong.settings import setting
from lifelong.streams.task import Task
from lifelong.tree import Params


@dataclass
class Path:
    """The path integral `w_i = -sum_steps g_i * dtheta_i`, with g the gradient of the loss and dtheta the real step.

    It estimates how much of the fall of the loss each parameter brought about. A step adds `g (theta - start)` before
    and takes `g (theta - start)` off after it, so no copy of the parameters before the step is needed; measured from
    the start and not from 0, both terms are of the size of `w` itself, and no precision is lost.

    Args:
        integral: `w`, one tree.
    """

    integral: Params = field(default_factory=dict)
    gradient: Params = field(default_factory=dict, metadata={"transient": True})

    def restart(self, params: Params) -> None:
        """Set the integral to zero for `params`."""
        self.integral = tree.zeros_like(params)

    def observe(self, params: Params, start: Params) -> None:
        """Keep the gradients of `params` for `advance`; whoever changes them later puts others in their place."""
        self.gradient = {name: each.grad for name, each in params.items() if each.grad is not None}
        with torch.no_grad():
            for names in tree.blocks(params, self.gradient):
                self._add(params, start, names, 1.0)

    def advance(self, params: Params, start: Params) -> None:
        """Take in the step that has just been made."""
        with torch.no_grad():
            for names in tree.blocks(params, self.gradient):
                self._add(params, start, names, -1.0)
        # Let go before the next backward pass, which makes gradients of its own.
        self.gradient = {}

    def _add(self, params: Params, start: Params, names: list[str], sign: float) -> None:
        away = torch._foreach_sub(tree.leaves(params, names), tree.leaves(start, names))
        torch._foreach_addcmul_(tree.leaves(self.integral, names), tree.leaves(self.gradient, names), away, value=sign)


@dataclass
class SI(Method):
    """Hold each parameter by what it contributed to the fall of the loss along the path of training.

    At the end of a task `Omega_i += relu(w_i) / ((theta_i - theta_i(start))^2 + xi)` with the path integral
    `w_i = -sum_steps g_i dtheta_i` of the unregularised gradient and the real displacement (Zenke et al. 2017,
    1703.04200, eq. 3 to 5). The paper's penalty has no 1/2: its c is half of our `strength`.
    """

    family: ClassVar[str] = "importance"
    paper: ClassVar[str] = "1703.04200"

    strength: float = setting(1.0, "weight of the penalty strength/2 * sum Omega (theta - theta*)^2, at least 0", ge=0)
    xi: float = setting(0.1, "damping of the division by the squared displacement, above 0", gt=0)
    path: Path = state(Path)
    anchor: Anchor = state(Anchor)

    def before_task(self, learner: Learner, task: Task) -> None:
        # The centre is where the last task ended, and so where this one starts; without weight it holds nothing.
        zeros = tree.zeros_like(learner.params)
        weight = {name: self.anchor.weight.get(name, zero) for name, zero in zeros.items()}
        self.anchor.recentre(weight, learner.params)
        self.path.restart(learner.params)

    def after_backward(self, learner: Learner) -> None:
        self.path.observe(learner.params, self.anchor.centre)

    def before_step(self, learner: Learner) -> None:
        self.anchor.pull(learner.params, self.strength)

    def after_step(self, learner: Learner) -> None:
        self.path.advance(learner.params, self.anchor.centre)

    def after_task(self, learner: Learner, task: Task) -> None:
        with torch.no_grad():
            for name, integral in self.path.integral.items():
                moved = learner.params[name] - self.anchor.centre[name]
                self.anchor.weight[name].add_(integral.relu() / (moved.square() + self.xi))
        self.anchor.recentre({name: self.anchor.weight[name] for name in self.path.integral}, learner.params)
        self.path.integral = {}
