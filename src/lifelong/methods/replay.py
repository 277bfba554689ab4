"""What the methods share that replay what a generator, trained along with the network, makes of old tasks.

The generator is a tree of parameters (`models.vae`). What it keeps for each class are rows of tables that grow with the
tasks, `<table>.<task>`; classes are numbered in the order in which the tasks brought them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lifelong.learner import Batch, Learner
from lifelong.models import vae
from lifelong.streams.task import Scenario, Task
from lifelong.tree import Params

_CHECKED = 4096


def check_inputs(learner: Learner, task: Task, method: str) -> Tensor:
    """Return some training inputs of `task`, having refused what no Bernoulli decoder can make.

    Raises:
        InputError: whole numbers, or numbers outside 0..1.
    """
    for inputs, _ in task.train.ready(learner.device).batches(_CHECKED):
        vae.check_inputs(inputs, method)
    return inputs


def brings_classes(learner: Learner, task: Task) -> bool:
    """Return whether `task` has classes of its own, and not those of the first one."""
    return learner.scenario is not Scenario.DOMAIN or task.index == 0


def table(generator: Params, name: str) -> Tensor:
    """Return the rows `[classes, ...]` of all tasks that the generator has met."""
    return torch.cat([each for key, each in generator.items() if key.startswith(f"{name}.")])


def trained(generator: Params, task: int) -> Params:
    """Return what an optimiser trains up to `task`, under the names that a method's `trainable` gives it.

    Where a run is resumed the tasks come one by one, and the rows of later ones are there already.
    """
    later = {key for key in generator if (last := key.rpartition(".")[2]).isdigit() and int(last) > task}
    return {f"generator.{key}": each.requires_grad_() for key, each in generator.items() if key not in later}


def classes(learner: Learner, batch: Batch, outputs: Sequence[int]) -> Tensor:
    """Return the class `[batch]` of each sample; `outputs` are the numbers of classes of the tasks so far."""
    if learner.scenario is not Scenario.TASK:
        return batch.targets
    first = torch.tensor([0, *outputs], device=batch.targets.device).cumsum(0)
    return batch.targets + first[batch.task]


def even(count: int, kinds: int, device: torch.device) -> Tensor:
    """Return `count` of the numbers below `kinds`, each as often as any other but for one."""
    return torch.randperm(kinds, device=device)[torch.arange(count, device=device) % kinds]
