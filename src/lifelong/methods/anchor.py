"""One quadratic that holds parameters to where old tasks left them, whatever the number of tasks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lifelong import tree
from lifelong.tree import Params


@dataclass
class Anchor:
    """The penalty `strength/2 * sum_i A_i (theta_i - c_i)^2` that every importance method shares.

    A sum over tasks `1/2 sum_t F_t (theta - theta*_t)^2` is, but for a constant, one quadratic with weight
    `A = sum_t F_t` and centre `c = sum_t F_t theta*_t / A`; so two trees replace two per task.

    Args:
        weight: `A`, non-negative; empty before the first task.
        centre: `c`, of the same names and shapes.
    """

    weight: Params = field(default_factory=dict)
    centre: Params = field(default_factory=dict)

    def add(self, importance: Params, theta: Params) -> None:
        """Add the quadratic of `importance` around `theta`; names that are new are taken in, others' stay."""
        known = [name for name in importance if name in self.weight]
        with torch.no_grad():
            for weight, centre, new, point in tree.blocks(known, self.weight, self.centre, importance, theta):
                torch._foreach_add_(weight, new)
                # Where nothing weighs, the centre is irrelevant: the share is 0 and no 0/0 arises.
                share = [torch.where(total > 0, part / total, 0.0) for part, total in zip(new, weight, strict=True)]
                torch._foreach_lerp_(centre, point, share)
        fresh = {name: weight.clone() for name, weight in importance.items() if name not in self.weight}
        self.recentre(fresh, theta)

    def follow(self, importance: Params, theta: Params, keep: float = 1.0, share: float = 1.0) -> None:
        """Make the weight `A <- keep * A + share * importance`, around the newest `theta`.

        Parameters that `importance` lacks keep their centre.
        """
        for weight in self.weight.values():
            weight.mul_(keep)
        for name, new in importance.items():
            if name in self.weight:
                self.weight[name].add_(new, alpha=share)
            else:
                self.weight[name] = new * share
        self.recentre({name: self.weight[name] for name in importance}, theta)

    def recentre(self, weight: Params, theta: Params) -> None:
        """Make the quadratic that of `weight`, which is kept and not copied, around a copy of `theta`.

        Parameters that `weight` lacks keep theirs.
        """
        self.weight.update(weight)
        for name in weight:
            if name in self.centre:
                self.centre[name].copy_(theta[name].detach())
            else:
                self.centre[name] = theta[name].detach().clone()

    def pull(self, params: Params, strength: float) -> None:
        """Add the penalty's gradient, `strength * A (theta - c)`, to those of `params`, in place.

        Done after `backward()`, so no graph is built. Parameters without a gradient did not take part in the step.
        """
        if strength == 0:
            return
        gradients = tree.gradients(params)
        names = [name for name in self.weight if name in gradients]
        with torch.no_grad():
            for gradient, weight, theta, centre in tree.blocks(names, gradients, self.weight, params, self.centre):
                torch._foreach_addcmul_(gradient, weight, torch._foreach_sub(theta, centre), value=strength)

    def penalty(self, params: Params, strength: float) -> Tensor:
        """Return the penalty itself, a 0-d tensor; training needs only its gradient."""
        names = [name for name in self.weight if name in params]
        theta = {name: params[name] for name in names}
        away = tree.sub(theta, {name: self.centre[name] for name in names})
        return tree.dot({name: self.weight[name] for name in names}, tree.mul(away, away)) * (strength / 2)
