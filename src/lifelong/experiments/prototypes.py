"""What a pool is asked by: the mean feature of the samples of a task that is yet to come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lifelong import tree
from lifelong.errors import InputError
from lifelong.experiments import build
from lifelong.experiments.recipe import recipe
from lifelong.merging.pool import Pool
from lifelong.methods.merging import mean_direction, seen
from lifelong.streams import Task


def prototype(pool: Pool, settings: Mapping[str, Any]) -> Tensor:
    """Return the mean direction `[width]` of the base's features of training samples, as runs put it beside experts.

    Args:
        pool: that a run filled. Inputs are standardised as they were in that run.
        settings: of a recipe: `data`, `model` and what these need to be read and made as they were in that run.

    Raises:
        InputError: data that cannot be had or is more than one set, samples of another shape than the pool's experts
            saw, or a model that has not the base's tensors.
    """
    made = recipe({"stream": "domains", **settings})
    if "," in made.data:
        raise InputError(f"data = {made.data} is more than one data set: ask for the nearest of one at a time")
    tasks = build.stream(made)
    learner, task = build.learner(made, tasks), _as_seen(tasks.tasks[0], pool)
    base = {name: each.to(learner.device) for name, each in pool.base().items() if name.startswith("trunk.")}
    own = tree.weights(learner.model)
    for name, each in sorted(base.items()):
        if name not in own or own[name].shape != each.shape:
            there = f"of shape {list(own[name].shape)}" if name in own else "none of that name"
            raise InputError(
                f"the pool is of another network: its base has {name} of shape {list(each.shape)}, and model "
                f"{made.model} {there}"
            )
    return mean_direction(learner, base, task)


def _as_seen(task: Task, pool: Pool) -> Task:
    """Return `task` with its inputs standardised as those were that the experts of `pool` learned from."""
    told = [pool.members[name].task.get("inputs") for name in pool.prototypes()]
    known, found = next((each for each in told if each is not None), None), seen(task)
    if known is None:  # prototypes that were added by hand
        return task
    for what in ("shape", "dtype"):
        if found[what] != known[what]:
            raise InputError(
                f"the pool's experts saw inputs of {what} {known[what]}, and {task.name} has {found[what]}: read it as "
                "the run did"
            )
    if known["mean"] is None:
        return task
    broadcast = (-1, *[1] * (len(known["shape"]) - 1))
    mean, std = (torch.tensor(known[name]).view(broadcast) for name in ("mean", "std"))
    return replace(task, train=replace(task.train, mean=mean, std=std))
