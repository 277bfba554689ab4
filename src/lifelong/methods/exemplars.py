"""Exemplars: the few samples of each class that stand for it, chosen by herding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong.curvature.per_sample import evaluating
from lifelong.errors import InputError
from lifelong.learner import Learner
from lifelong.memory import Buffer
from lifelong.methods.samples import BATCH
from lifelong.streams.task import Split, Task


def check_capacity(learner: Learner, capacity: int, least: int = 1) -> None:
    """Raise `InputError` where `capacity` exemplars would leave some class of the stream with less than `least`."""
    classes = sum(learner.planned_classes)
    if capacity < least * classes:
        raise InputError(
            f"capacity = {capacity} is too small for {classes} classes: give it at least {least * classes}"
        )


def renew(memory: Buffer, learner: Learner, task: Task, ready: Split, share: int) -> None:
    """Make `memory` hold `share` exemplars of each class so far, by the network as it is after `task`.

    Those of old classes are cut in the order in which herding took them (1611.07725, algorithm 5), those of the classes
    of `task` are chosen anew (algorithm 4) among the samples of `ready`.
    """
    cut(memory, share)
    features = unit_features(learner, ready)
    for label in task.classes:
        own = (ready.targets == label).nonzero().flatten()
        keep(memory, task, ready.take(own[herding(features[own], share)]), label)


def cut(memory: Buffer, share: int) -> None:
    """Leave in `memory` the first `share` samples of each class."""
    groups = memory.groups
    if len(groups):
        chosen = [(groups == label).nonzero().flatten()[:share] for label in groups.unique().tolist()]
        memory.keep(torch.cat(chosen))


def keep(memory: Buffer, task: Task, taken: Split, label: int) -> None:
    """Put the samples of the `ready` split `taken`, of `task` and of the class `label`, into `memory`."""
    tasks = torch.full_like(taken.targets, task.index)
    memory.append({"inputs": taken.inputs, "targets": taken.targets, "tasks": tasks}, label)


def herding(features: Tensor, count: int) -> Tensor:
    """Return the indices, `[count]`, of the samples whose running mean stays closest to the mean of all.

    `p_k = argmin_x || mu - 1/k (phi(x) + sum_{j<k} phi(p_j)) ||`, without repetition (1611.07725, algorithm 4).

    Args:
        features: `[samples, width]`, of length 1 each.
        count: how many to choose; all where there are fewer samples.
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    squares = features.square().sum(1)
    chosen: list[int] = []
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    for number in range(1, min(count, len(features)) + 1):
        # The squared distance, times k^2 and without what all samples share.
        distance = squares - 2 * features @ (number * mean - total)
        best = int(distance.masked_fill(taken, torch.inf).argmin())
        chosen.append(best)
        taken[best] = True
        total = total + features[best]
    return torch.tensor(chosen, device=features.device)


@torch.no_grad()
def unit_features(learner: Learner, split: Split) -> Tensor:
    """Return features of length 1, `[samples, width]`, of a `ready` split."""
    with evaluating(learner.model), learner.precision():
        found = [learner.model.features(inputs) for inputs, _ in split.batches(BATCH)]
    return F.normalize(torch.cat(found).float(), dim=1)
