"""The network as it was after the last task: what distillation holds the learner to."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from lifelong import tree
from lifelong.learner import Learner
from lifelong.methods.method import transient
from lifelong.models import Network
from lifelong.tree import Params


@dataclass
class Teacher:
    """A frozen copy of the network, in evaluation mode.

    Args:
        weights: parameters and buffers; empty before the first task is over.
    """

    weights: Params = field(default_factory=dict)
    copied: Network | None = transient(lambda: None)

    def remember(self, learner: Learner) -> None:
        """Become the network as it is now."""
        self.weights, self.copied = tree.snapshot(tree.weights(learner.model)), None

    def network(self, learner: Learner) -> Network:
        """Return the old network; layers that came since are as they were when it was asked for first."""
        if self.copied is None:
            self.copied = copy.deepcopy(learner.model).requires_grad_(False).eval()
            live = tree.weights(self.copied)
            tree.copy_({name: live[name] for name in self.weights}, self.weights)
        return self.copied

    def forget_copy(self) -> None:
        """Copy anew when next asked: the learner's network has got other layers."""
        self.copied = None
