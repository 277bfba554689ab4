"""From a merged model to one task: a few epochs, or a few shots."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lifelong import tree
from lifelong.curvature.per_sample import evaluating
from lifelong.errors import InputError
from lifelong.tree import Params

Loss = Callable[[Tensor, Tensor], Tensor]


def adapt(
    model: nn.Module,
    weights: Params,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    epochs: int = 1,
    learning_rate: float = 1e-3,
    keep: float = 0.0,
    loss: Loss = F.cross_entropy,
) -> Params:
    """Return `weights` after some steps on one task, `min loss + keep/2 ||theta - weights||^2`, by Adam.

    Args:
        model: gives the computation; its own weights are used where `weights` names none, and stay. Evaluated with
            running statistics and without dropout, which a few shots could not estimate.
        weights: such as `Pool.merge` returns; those of fractions are trained.
        batches: `(inputs, targets)` of the task; a few shots are one batch.
        epochs: passes over them.
        learning_rate: of Adam.
        keep: pull towards where it began, at least 0: of a few shots the merge knows more than they tell.
        loss: of the model's answers and the targets, 0-d.

    Raises:
        InputError: no samples, or weights that the model does not have.
    """
    own = tree.weights(model)
    odd = sorted(weights.keys() - own.keys())
    if odd:
        raise InputError(f"the model has no tensor {odd[0]!r}, which the weights to adapt name")
    if not batches:
        raise InputError("give at least one batch of the task to adapt to")
    start = {name: each.detach().to(own[name].device, copy=True) for name, each in weights.items()}
    trained = {name: nn.Parameter(start[name].clone()) for name, each in model.named_parameters() if name in start}
    adam = torch.optim.Adam(trained.values(), learning_rate)
    with evaluating(model):
        for _ in range(epochs):
            for inputs, targets in batches:
                total = loss(functional_call(model, {**start, **trained}, (inputs,)), targets)
                adam.zero_grad()
                total.backward()
                if keep > 0:
                    for name, each in trained.items():
                        assert each.grad is not None
                        each.grad.add_(each.detach() - start[name], alpha=keep)
                adam.step()
    return {**start, **{name: each.detach() for name, each in trained.items()}}
