"""Synaptic intelligence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from lifelong import tree
from lifelong.learner import Learner
from lifelong.methods.anchor import Anchor, gradients
from lifelong.methods.method import Method, state, transient
from lifelong.settings import setting
from lifelong.streams.task import Task
from lifelong.tree import Params


@dataclass
class Path:
    """The path integral `w_i -= g_i * (theta_i(after the step) - theta_i(before))`, with g the gradient of the loss.

    It estimates how much of the fall of the loss each parameter brought about, and grows where a parameter did.

    Args:
        integral: `w`, one tree.
    """

    integral: Params = field(default_factory=dict)
    gradient: Params = field(default_factory=dict, metadata={"transient": True})
    before: Params = field(default_factory=dict, metadata={"transient": True})

    def restart(self, params: Params) -> None:
        """Set the integral to zero for `params`."""
        self.integral = tree.zeros_like(params)

    def observe(self, params: Params) -> None:
        """Note where `params` stand and their gradients, before either changes."""
        names = [name for name, parameter in params.items() if parameter.grad is not None]
        if self.before.keys() != set(names):
            self.before = tree.zeros_like({name: params[name] for name in names})
            self.gradient = tree.zeros_like(self.before)
        with torch.no_grad():
            torch._foreach_copy_(list(self.before.values()), tree.leaves(params, list(self.before)))
            torch._foreach_copy_(list(self.gradient.values()), gradients(params, list(self.before)))

    def advance(self, params: Params) -> None:
        """Add what the step that has just been made contributed; `before` becomes the way back, `-dtheta`."""
        names = list(self.before)
        with torch.no_grad():
            back = list(self.before.values())
            torch._foreach_sub_(back, tree.leaves(params, names))
            torch._foreach_addcmul_(tree.leaves(self.integral, names), tree.leaves(self.gradient, names), back)


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
    start: Params = state(dict)
    anchor: Anchor = state(Anchor)

    def before_task(self, learner: Learner, task: Task) -> None:
        self.path.restart(learner.params)
        self.start = tree.snapshot(learner.params)

    def after_backward(self, learner: Learner) -> None:
        self.path.observe(learner.params)

    def before_step(self, learner: Learner) -> None:
        self.anchor.pull_(learner.params, self.strength)

    def after_step(self, learner: Learner) -> None:
        self.path.advance(learner.params)

    def after_task(self, learner: Learner, task: Task) -> None:
        old = self.anchor.weight
        with torch.no_grad():
            moved = tree.sub(learner.params, self.start)
            omega = tree.map(lambda w, d: w.relu() / (d.square() + self.xi), self.path.integral, moved)
        total = {name: old[name] + new if name in old else new for name, new in omega.items()}
        self.anchor.recentre(total, learner.params)
        self.path.integral, self.start = {}, {}
