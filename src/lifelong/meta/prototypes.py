"""Support samples' features and their means, which several algorithms judge queries by."""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.meta.episodes import Episodes
from lifelong.meta.learner import Problem, network_weights
from lifelong.meta.network import shared
from lifelong.meta.normalisation import Norm
from lifelong.tree import Params


def embedded(problem: Problem, meta: Params, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """Return features of support and query samples, `[tasks, samples, width]` each.

    Both go through the trunk together, so that transductive batch norm has one mean for them.
    """
    shots, weights = episodes.support.shape[1], shared(network_weights(meta), len(episodes))
    norm = Norm(shots if problem.network.statistics == "support" else None)
    features = problem.network.features(weights, torch.cat([episodes.support, episodes.query], 1), norm)
    return features[:, :shots], features[:, shots:]


def prototypes(features: Tensor, targets: Tensor) -> Tensor:
    """Return each class's mean feature `[tasks, ways, width]`, for `[tasks, samples, width]` and `[tasks, samples]`."""
    members = torch.nn.functional.one_hot(targets).to(features.dtype)
    return members.transpose(1, 2) @ features / members.sum(1).unsqueeze(2)
