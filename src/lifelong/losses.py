"""What a network's outputs are worth beside what was wanted: labels of classes, or numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def task_loss(outputs: Tensor, targets: Tensor, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
    """Return `-log p(y | x)`: cross-entropy for labels, `1/2 (y - f(x))^2` for numbers.

    The latter is the likelihood of a Gaussian of deviation 1 around the one output, but for a constant, so that both
    are in nats and importances measure both alike.

    Args:
        outputs: `[batch, outputs]`; where samples are of several tasks, rows of smaller ones end in -inf.
        targets: `[batch]` int64 labels. Floating point in a stream in which some task predicts a number: rows with one
            output are of such a task then, and others hold their labels as whole numbers.
        reduction: over the batch.

    Returns:
        0-d, or `[batch]` for none.
    """
    if not targets.is_floating_point():
        return F.cross_entropy(outputs, targets, reduction=reduction)
    numbers = predict_numbers(outputs, targets)
    of_numbers = F.mse_loss(outputs[:, 0], targets, reduction="none") / 2
    # Where the only output is finite its cross-entropy is 0, and so is its gradient.
    of_labels = F.cross_entropy(outputs, torch.where(numbers, 0, targets).long(), reduction="none")
    terms = torch.where(numbers, of_numbers, of_labels)
    return terms if reduction == "none" else terms.mean() if reduction == "mean" else terms.sum()


def predict_numbers(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return which rows of a batch predict a number, `[batch]` boolean; arguments as for `task_loss`."""
    if not targets.is_floating_point():
        return torch.zeros_like(targets, dtype=torch.bool)
    return outputs[:, 1:].isneginf().all(1)


def are_numbers(outputs: Tensor, targets: Tensor) -> bool:
    """Return whether `targets` `[batch]` of one task are numbers, and the `outputs` `[batch, outputs]` predict them."""
    return targets.is_floating_point() and outputs.shape[1] == 1


def score(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the share of right answers, 0 to 1, or for a number `R^2 = 1 - sum (y - f)^2 / sum (y - mean y)^2`.

    R^2 is at most 1, 0 for who answers with the mean, and below that for who does worse.

    Args:
        batches: `(outputs, targets)` of all its samples, `[batch, outputs]` and `[batch]`; at least one.
    """
    wrong: list[Tensor] = []
    wanted: list[Tensor] = []
    numbers = False
    for outputs, targets in batches:
        if outputs.shape[1] == 0:  # no class has been learned yet, so none can be answered
            return 0.0
        numbers = are_numbers(outputs, targets)
        if numbers:
            wrong.append(F.mse_loss(outputs[:, 0].float(), targets, reduction="sum"))
        else:
            wrong.append((outputs.argmax(1) != targets).sum())
        wanted.append(targets)
    missed, count = sum(map(float, wrong)), sum(map(len, wanted))
    if not numbers:
        return (count - int(missed)) / count
    spread = float(torch.cat(wanted).cpu().double().var(correction=0)) * count
    return 1 - missed / spread if spread else float(missed == 0)
