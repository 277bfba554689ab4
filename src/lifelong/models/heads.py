"""The last layer under each scenario: one head, a head a task, or a head that grows by each task's classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Block = Callable[[int, int], nn.Module]

# Of the logits of class means: cosines of mean features differ by some hundredths, which this makes a nat or two.
CLASS_MEANS_SCALE = 30.0


class FixedBlock(nn.Module):
    """Outputs that do not learn: `scale * cos(features, row of the class)`.

    Args:
        rows: `[classes, width]`, one for each class: its mean features, or the embedding of its name.
        scale: of the logits, above 0; the greatest one that there can be.
    """

    def __init__(self, rows: Tensor, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(rows, dim=1), requires_grad=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Return logits `[batch, classes]` for `[batch, width]` features."""
        return self.scale * F.linear(F.normalize(features, dim=1), self.weight)


class SingleHead(nn.Module):
    """One linear layer for all tasks, `logits = W features + b`.

    Args:
        linear: the layer, with an output for every class of the stream.
        mask_unseen: answer only for the classes that have been learned; they are the first ones in the numbering
            of a class-incremental stream, so masking is a slice. Shared labels (task or domain) are never masked.
    """

    def __init__(self, linear: nn.Module, mask_unseen: bool = False) -> None:
        super().__init__()
        self.linear = linear
        self.mask_unseen = mask_unseen
        self.sizes: list[int] = []

    def grow(self, classes: int) -> None:
        """Take notice of a task that brings `classes` more."""
        self.sizes.append(classes)

    def forward(self, features: Tensor, task: int | Tensor) -> Tensor:
        """Return logits `[batch, classes]` (seen classes, if unseen ones are masked) for `[batch, width]` features."""
        logits: Tensor = self.linear(features)
        return logits[:, : sum(self.sizes)] if self.mask_unseen else logits


class MultiHead(nn.Module):
    """A linear layer for each task; the task of each sample is told.

    Args:
        block: makes the layer of a task from its index and its number of classes; the same layer each time.
        planned: the number of classes of tasks to come, where that is known.
    """

    def __init__(self, block: Block, planned: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.block = block
        self.planned = planned
        self.blocks = nn.ModuleList()

    def grow(self, classes: int) -> None:
        """Add the layer of a task with `classes` classes."""
        self.blocks.append(self.block(len(self.blocks), classes))

    def forward(self, features: Tensor, task: int | Tensor) -> Tensor:
        """Return logits `[batch, classes of the task]`; a task to come answers with the layer that it will start from.

        Where `task` is `[batch]` int64 every sample has its own head, and rows of smaller tasks end in -inf.
        """
        if isinstance(task, int):
            return self._logits(features, task)
        present = task.unique().tolist()
        answers = {index: self._logits(features[task == index], index) for index in present}
        width = max(answer.shape[1] for answer in answers.values())
        logits = next(iter(answers.values())).new_full((len(features), width), -torch.inf)
        for index, answer in answers.items():
            logits[task == index, : answer.shape[1]] = answer
        return logits

    def _logits(self, features: Tensor, index: int) -> Tensor:
        if index < len(self.blocks):
            logits: Tensor = self.blocks[index](features)
            return logits
        fresh: Tensor = self.block(index, self.planned[index]).to(features)(features)
        return fresh


class GrowingHead(MultiHead):
    """The same layers side by side: the answer is over all classes seen so far, no task is told."""

    def forward(self, features: Tensor, task: int | Tensor) -> Tensor:
        """Return logits `[batch, classes seen]`."""
        if not self.blocks:
            return features.new_empty(len(features), 0)
        return torch.cat([block(features) for block in self.blocks], dim=1)
