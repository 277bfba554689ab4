"""Gradient steps on a batch that arrives part by part, differentiable by what they began with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from lifelong.learner import Batch
from lifelong.tree import Params


def parts(batch: Batch, steps: int) -> list[Tensor]:
    """Return the indices `[n]` of the new samples of `batch` in `steps` parts, in order, or fewer of a sample each."""
    rows = torch.arange(batch.new, device=batch.targets.device)
    return list(rows.tensor_split(min(steps, len(rows))))


def descended(
    params: Params,
    losses: Iterable[Callable[[Params], Tensor]],
    rates: Mapping[str, float | Tensor],
    *,
    second_order: bool,
) -> Params:
    """Return `params` after a step `theta <- theta - rate * grad loss(theta)` on each of `losses`, one after another.

    Args:
        params: that need a gradient.
        losses: give a 0-d loss for weights.
        rates: of each weight, a number or of its shape.
        second_order: derivatives of the outcome go through the gradients, too, which are constants otherwise.
    """
    if not params:
        return params
    for loss in losses:
        slopes = torch.autograd.grad(
            loss(params),
            list(params.values()),
            create_graph=second_order,
            allow_unused=True,
            materialize_grads=True,
        )
        moved = zip(params.items(), slopes, strict=True)
        params = {name: each - rates[name] * slope for (name, each), slope in moved}
    return params
