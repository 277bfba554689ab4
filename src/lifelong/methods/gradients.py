"""Gradients beside the one that a step descends: over a batch, and over many small ones at once but kept apart."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from lifelong.curvature.per_sample import evaluating
from lifelong.learner import Batch, Learner
from lifelong.losses import task_loss
from lifelong.models import Network
from lifelong.tree import Params


def over(learner: Learner, batch: Batch) -> Params:
    """Return the gradient of the mean loss over `batch`, leaving `.grad` alone; zero where it does not reach.

    In evaluation mode, so that looking at old samples leaves normalisation statistics as they are.
    """
    with evaluating(learner.model), learner.precision():
        loss = task_loss(learner.model(batch.inputs, batch.task), batch.targets)
    found = torch.autograd.grad(loss, list(learner.params.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(learner.params, found, strict=True))


def over_each(learner: Learner, names: Iterable[str], batches: Sequence[Batch]) -> Params:
    """Return the gradients `[batches, ...]` of the mean loss over each of `batches`, for `names`.

    Each batch gets a copy of the parameters (a view, no memory), so that one backward pass keeps the gradients apart;
    the trunk runs over all batches at once. For batches of a sample or a few: those of a hundred and more are faster
    one by one with `over`, convolutions above all, and so are those of a network that runs otherwise in each task.
    Batches are of one length, and each of one task. Evaluation mode, as `over`.
    """
    model, count = learner.model, len(batches)
    if model.route is not None:
        rows = [over(learner, each) for each in batches]
        return {name: torch.stack([row[name] for row in rows]) for name in names}
    copies = {name: learner.params[name].detach().expand(count, *learner.params[name].shape) for name in names}
    for each in copies.values():
        each.requires_grad_()
    inputs = torch.stack([each.inputs for each in batches])
    with evaluating(model), learner.precision():
        features = vmap(functools.partial(_features, model))(_within(copies, "trunk."), inputs)
        losses = [
            task_loss(_answers(model, copies, place, row, each.task), each.targets)
            for place, (row, each) in enumerate(zip(features, batches, strict=True))
        ]
    found = torch.autograd.grad(
        torch.stack(losses).sum(), list(copies.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(copies, found, strict=True))


def _features(model: Network, params: Params, inputs: Tensor) -> Tensor:
    features: Tensor = functional_call(model.trunk, params, (inputs,))
    return features


def _answers(model: Network, copies: Params, place: int, features: Tensor, task: int | Tensor) -> Tensor:
    own = {name: each[place] for name, each in _within(copies, "head.").items()}
    logits: Tensor = functional_call(model.head, own, (features, task))
    return logits


def _within(params: Params, prefix: str) -> Params:
    return {name.removeprefix(prefix): each for name, each in params.items() if name.startswith(prefix)}
