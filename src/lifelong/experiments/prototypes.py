"""What a pool is asked by: the mean feature of the samples of a task that is yet to come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lifelong import tree
from lifelong.errors import InputError
from lifelong.experiments import build
from lifelong.experiments.recipe import recipe
from lifelong.methods import MagMax
from lifelong.tree import Params


def prototype(base: Params, settings: Mapping[str, Any]) -> Tensor:
    """Return the mean direction `[width]` of the features of training samples, as runs put it beside their experts.

    Args:
        base: of a pool that a run filled: the weights that all its experts began with, by their names in the network.
        settings: of a recipe: `data`, `model` and what these need to be read and made as they were in that run.

    Raises:
        InputError: data that cannot be had, or a model that has not the base's tensors.
    """
    made = recipe({"stream": "domains", **settings})
    tasks = build.stream(made)
    learner = build.learner(made, tasks)
    own = tree.weights(learner.model)
    strange = next((name for name, each in base.items() if name not in own or own[name].shape != each.shape), None)
    if strange is not None:
        raise InputError(
            f"the pool is of another network: its base has {strange} {list(base[strange].shape)}, and model "
            f"{made.model} has not"
        )
    asked = MagMax()
    asked.base = {name: each.to(learner.device) for name, each in base.items()}
    asked.base_buffers = tree.snapshot(dict(learner.model.named_buffers()))
    return asked.prototype(learner, tasks.tasks[0])
