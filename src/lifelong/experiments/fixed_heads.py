"""Heads that do not learn: the mean features of each class, or the embedding of its name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong import models, randomness
from lifelong.curvature.per_sample import evaluating
from lifelong.experiments.recipe import Recipe
from lifelong.models.heads import CLASS_MEANS_SCALE, FixedBlock
from lifelong.streams import Scenario, Stream
from lifelong.streams.task import Task

# Training samples of a class that its mean is taken over at most: more move it by less than a hundredth.
_SAMPLES = 256
_BATCH = 64


def fixed_head(recipe: Recipe, stream: Stream, trunk: nn.Module) -> Callable[[int], FixedBlock] | None:
    """Return what makes the outputs of a task from its index, or None where they are to learn.

    `class-means`: mean direction of the features of training samples in `trunk` as it is now, which is what a run
    begins with (nearest class mean, where there is no text tower). `class-names`: embeddings of the names in the space
    that images and texts share (Radford et al. 2021, 2103.00020, section 3.1.2), as MagMax does (2407.06322). One
    head for all tasks of a domain-incremental stream is made of the first of them.

    Raises:
        InputError: names are asked for, and the model has no text tower.
    """
    if recipe.head_rows == "learned":
        return None
    if recipe.head_rows == "class-names":
        names = [label for task in stream.tasks for label in task.labels]
        every, scale = models.class_embeddings(recipe.model, recipe.model_settings, names)
        rows = list(every.split([len(task.labels) for task in stream.tasks]))
    else:
        rows, scale = [_means(trunk, task, recipe.seed) for task in stream.tasks], CLASS_MEANS_SCALE
    if recipe.head == "single" and stream.scenario is Scenario.CLASS:
        rows = [torch.cat(rows)]
    return lambda index: FixedBlock(rows[index], scale)


def _means(trunk: nn.Module, task: Task, seed: int) -> Tensor:
    """Return the mean direction `[classes, width]` of the features of each class of `task`."""
    ready = task.train.ready(torch.device("cpu"))
    means = []
    with torch.no_grad(), evaluating(trunk):
        for label in task.classes:
            found = (ready.targets == label).nonzero().flatten()
            drawn = torch.randperm(len(found), generator=randomness.generator(seed, "means", task.index, label))
            batches = ready.batches(_BATCH, found[drawn[:_SAMPLES]])
            means.append(torch.cat([F.normalize(trunk(inputs).float(), dim=1) for inputs, _ in batches]).mean(0))
    return torch.stack(means)
