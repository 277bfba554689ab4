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

    It estimates how much of the fall of the loss each parameter brought about. No copy of the parameters before a step
    is needed: with `d = theta - start`, a step adds `g d` from before it and takes off `g d` from after it, the latter
    together with what the next step adds, in one go over the memory. Measured from the start and not from 0, both are
    of the size of `w` itself, and no precision is lost.

    Args:
        integral: `w`, one tree; true after `settle`.
        gradient: of the step whose `g d` is still to be taken off, zero where a parameter had none.
    """

    integral: Params = field(default_factory=dict)
    gradient: Params = field(default_factory=dict)

    def restart(self, params: Params) -> None:
        """Set the integral to zero for `params`."""
        self.integral, self.gradient = tree.zeros_like(params), tree.zeros_like(params)

    @torch.no_grad()
    def observe(self, params: Params, start: Params) -> None:
        """Take in the gradients of `params`, of the loss alone, before a step; of those that it was started with."""
        params = {name: params[name] for name in self.integral}
        found = tree.gradients(params)
        self.settle({name: each for name, each in params.items() if name not in found}, start)
        trees = (self.integral, self.gradient, found, params, start)
        for integral, last, gradient, theta, origin in tree.blocks(found, *trees):
            torch._foreach_sub_(last, gradient)
            torch._foreach_addcmul_(integral, last, torch._foreach_sub(theta, origin), value=-1)
            torch._foreach_copy_(last, gradient)

    @torch.no_grad()
    def settle(self, params: Params, start: Params) -> None:
        """Finish the last step of `params`, so that their integral is true."""
        known = [name for name in params if name in self.integral]
        trees = (self.integral, self.gradient, params, start)
        for integral, last, theta, origin in tree.blocks(known, *trees):
            torch._foreach_addcmul_(integral, last, torch._foreach_sub(theta, origin), value=-1)
            torch._foreach_zero_(last)


@dataclass
class SI(Method):
    """Hold each parameter by what it contributed to the fall of the loss along the path of training.

    At the end of a task `Omega_i += relu(w_i) / ((theta_i - theta_i(start))^2 + xi)` with the path integral
    `w_i = -sum_steps g_i dtheta_i` of the unregularised gradient and the real displacement (Zenke et al. 2017,
    1703.04200, eq. 3 to 5). The paper's penalty has no 1/2: its c is half of our `strength`.
    """

    family: ClassVar[str] = "importance"
    paper: ClassVar[str] = "1703.04200"
    regression: ClassVar[bool] = True

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

    def after_task(self, learner: Learner, task: Task) -> None:
        self.path.settle(learner.params, self.anchor.centre)
        trees = (self.anchor.weight, self.path.integral, learner.params, self.anchor.centre)
        with torch.no_grad():
            for weight, integral, theta, centre in tree.blocks(self.path.integral, *trees):
                moved = torch._foreach_sub(theta, centre)
                torch._foreach_mul_(moved, moved)
                torch._foreach_add_(moved, self.xi)
                torch._foreach_clamp_min_(integral, 0)
                torch._foreach_addcdiv_(weight, integral, moved)
        self.anchor.recentre({name: self.anchor.weight[name] for name in self.path.integral}, learner.params)
        self.path = Path()
