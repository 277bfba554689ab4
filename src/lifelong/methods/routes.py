"""Which weights answer for a sample whose task is not told: those of the nearest prototype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong.tree import Params


@dataclass
class Routes:
    """Tasks that answer with weights of their own, and a prototype of every task to tell them by.

    Args:
        weights: of the tasks that were not merged, by their index.
        prototypes: `[tasks, width]`, mean directions of features of all tasks, merged or not.
    """

    weights: dict[str, Params] = field(default_factory=dict)
    prototypes: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def meet(self, prototype: Tensor) -> None:
        """Take in the `prototype` `[width]` of the next task."""
        rows = [self.prototypes] if len(self.prototypes) else []
        self.prototypes = torch.cat([*rows, prototype.unsqueeze(0)])

    def add(self, task: int, weights: Params) -> None:
        """Let `task` answer with its own `weights`."""
        self.weights[str(task)] = weights

    def nearest(self, features: Tensor) -> Tensor:
        """Return the index `[batch]` of the task whose prototype has the greatest cosine with `features`."""
        keys = F.normalize(self.prototypes.to(features), dim=1)
        return (F.normalize(features, dim=1) @ keys.T).argmax(1)


def answered(tasks: Tensor, answer: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Return what `answer(task, rows)` gives for the rows `[n]` of each task, in the order of `tasks` `[batch]`."""
    rows = [(index, (tasks == index).nonzero().flatten()) for index in tasks.unique().tolist()]
    answers = torch.cat([answer(index, chosen) for index, chosen in rows])
    return answers[torch.cat([chosen for _, chosen in rows]).argsort()]
