"""Support samples' features and their means, which several algorithms judge queries by."""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.meta.episodes import Episodes
from lifelong.meta.learner import Problem, network_weights
from lifelong.meta.network import shared
from lifelong.tree import Params


def embedded(problem: Problem, meta: Params, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """Return features of support and query samples, `[tasks, samples, width]` each.

    Both go through the trunk together, so that transductive batch norm has one mean for them.
    """
    shots, weights = episodes.support.shape[1], shared(network_weights(meta), len(episodes))
    first = None if problem.network.statistics == "transductive" else shots
    features = problem.network.features(weights, torch.cat([episodes.support, episodes.query], 1), first)
    return features[:, :shots], features[:, shots:]


def prototypes(features: Tensor, targets: Tensor) -> Tensor:
    """Return each class's mean feature `[tasks, ways, width]`, for `[tasks, samples, width]` and `[tasks, samples]`."""
    members = torch.nn.functional.one_hot(targets).to(features.dtype)
    return members.transpose(1, 2) @ features / members.sum(1).unsqueeze(2)
