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
        with torch.no_grad():
            for name, weight in importance.items():
                point = theta[name].detach()
                if name not in self.weight:
                    self.weight[name], self.centre[name] = weight.clone(), point.clone()
                    continue
                total = self.weight[name] + weight
                # Where nothing weighs, the centre is irrelevant: the share is 0 and no 0/0 arises.
                share = torch.where(total > 0, weight / total, 0.0)
                self.centre[name].lerp_(point, share)
                self.weight[name] = total

    def recentre(self, weight: Params, theta: Params) -> None:
        """Make the quadratic that of `weight`, which is kept and not copied, around a copy of `theta`.

        Parameters that `weight` lacks keep theirs.
        """
        self.weight.update(weight)
        self.centre.update(tree.snapshot({name: theta[name] for name in weight}))

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
