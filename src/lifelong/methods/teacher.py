"""The network as it was: a frozen copy that answers in evaluation mode."""

from __future__ import annotations

import copy

from lifelong import tree
from lifelong.models import Network
from lifelong.tree import Params


def frozen(model: Network, weights: Params) -> Network:
    """Return a copy of `model` with the older `weights`, in evaluation mode; layers that these lack stay as they are.

    Args:
        model: left as it is.
        weights: as `tree.weights` gave them.
    """
    network = copy.deepcopy(model).requires_grad_(False).eval()
    live = tree.weights(network)
    tree.copy_({name: live[name] for name in weights}, weights)
    return network
