"""What the structural methods share: a head a task, normalisation that stays, entries that no step may move."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from lifelong import tree
from lifelong.errors import InputError
from lifelong.learner import Learner
from lifelong.models.heads import MultiHead
from lifelong.tree import Params


def need_heads(learner: Learner, method: str) -> None:
    """Refuse a head that tasks share, as a later task would move it.

    Raises:
        InputError: the head is not a layer for each task.
    """
    if not isinstance(learner.model.head, MultiHead):
        raise InputError(f"method {method} keeps tasks apart by a head of their own: choose head multi")


def hold_statistics(trunk: nn.Module) -> None:
    """Let normalisation use its running statistics and not move them, in training too."""
    for module in trunk.modules():
        # Also those without parameters of their own, which cannot be frozen by them.
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()


@dataclass
class Hold:
    """Entries of parameters that stay as they are to the bit, whatever momentum and weight decay do.

    Args:
        held: 1 for entries that stay, 0 for the others, in the parameters' dtype: on the CPU arithmetic is ten times as
            fast as selection by booleans.
        values: what the held entries are.
    """

    held: Params = field(default_factory=dict)
    values: Params = field(default_factory=dict)

    @classmethod
    def of(cls, params: Params, held: Params) -> Hold:
        """Return what holds `params` where `held`, of the same names and shapes, is true."""
        names = [name for name, each in held.items() if each.any()]
        return cls(
            {name: held[name].to(params[name].dtype) for name in names},
            tree.snapshot({name: params[name] for name in names}),
        )

    @torch.no_grad()
    def mask(self, params: Params) -> None:
        """Set the gradients of held entries to zero."""
        found = tree.gradients({name: params[name] for name in self.held})
        if found:
            gradients = list(found.values())
            torch._foreach_addcmul_(gradients, gradients, tree.leaves(self.held, found), value=-1)

    @torch.no_grad()
    def restore(self, params: Params) -> None:
        """Put held entries back after a step."""
        if self.held:
            names = list(self.held)
            moved = tree.leaves(params, names)
            # With a weight of 0 or 1, interpolation returns one of its ends exactly.
            torch._foreach_lerp_(moved, tree.leaves(self.values, names), tree.leaves(self.held, names))
