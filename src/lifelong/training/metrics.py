"""The field's measures, from the accuracy matrix alone.

`a[k][j]` is the accuracy on task j after learning task k, both from 1; row 0 is before any learning. In code `matrix`
is `[tasks + 1, tasks]`, so `matrix[k][j - 1]` is `a[k][j]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def average_accuracy(matrix: Matrix, weights: Sequence[float] | None = None) -> float:
    """Return `1/T sum_j a[T][j]`, weighted by `weights` (test samples a task) for class-incremental streams."""
    return float(np.average(matrix[-1], weights=weights))


def average_incremental_accuracy(matrix: Matrix, weights: Sequence[float] | None = None) -> float:
    """Return the mean over k of the average of `a[k][j]` over the tasks `j <= k` seen by then (1611.07725)."""
    tasks = matrix.shape[1]
    share = np.ones(tasks) if weights is None else np.asarray(weights, dtype=float)
    return float(np.mean([np.average(matrix[k, :k], weights=share[:k]) for k in range(1, tasks + 1)]))


def learning_accuracy(matrix: Matrix) -> float:
    """Return `1/T sum_j a[j][j]`: how well each task was learned when it came."""
    return float(np.mean(_diagonal(matrix)))


def old_accuracy(matrix: Matrix) -> float | None:
    """Return the final accuracy on all tasks but the last, or None for one task."""
    return float(np.mean(matrix[-1, :-1])) if matrix.shape[1] > 1 else None


def forgetting(matrix: Matrix) -> float | None:
    """Return `1/(T-1) sum_{j<T} max_{l in j..T-1} (a[l][j] - a[T][j])`, which may be negative, or None for one task.

    Chaudhry et al. 2018, 1801.10112, eq. 3.
    """
    tasks = matrix.shape[1]
    if tasks < 2:
        return None
    return float(np.mean([matrix[j + 1 : tasks, j].max() - matrix[-1, j] for j in range(tasks - 1)]))


def backward_transfer(matrix: Matrix) -> float | None:
    """Return `1/(T-1) sum_{j<T} (a[T][j] - a[j][j])`, or None for one task (1706.08840, eq. 3)."""
    if matrix.shape[1] < 2:
        return None
    return float(np.mean(matrix[-1, :-1] - _diagonal(matrix)[:-1]))


def forward_transfer(matrix: Matrix) -> float | None:
    """Return `1/(T-1) sum_{j>1} (a[j-1][j] - a[0][j])`, or None for one task (1706.08840, eq. 4)."""
    tasks = matrix.shape[1]
    if tasks < 2:
        return None
    return float(np.mean([matrix[j, j] - matrix[0, j] for j in range(1, tasks)]))


def intransigence(matrix: Matrix, joint: Matrix) -> float:
    """Return `1/T sum_j (joint[j][j] - a[j][j])`: what was not learned for the sake of the old (1801.10112, eq. 4).

    `joint` is the matrix of the joint run of the same recipe; a joint run that trained once, at the end, counts by its
    last row.
    """
    reference = _diagonal(joint)
    trained_once = np.array_equal(joint[-2], joint[0]) and not np.array_equal(joint[-1], joint[0])
    return float(np.mean((joint[-1] if trained_once else reference) - _diagonal(matrix)))


def normalised_accuracy(matrix: Matrix, experts: Sequence[float]) -> float | None:
    """Return `1/T sum_j a[T][j] / e[j]`, e the accuracy of each task's own expert, or None where one of them is 0.

    1 where the merge answers for every task as well as the weights that were trained on it (2212.04089).
    """
    reference = np.asarray(experts)
    return float(np.mean(matrix[-1] / reference)) if (reference > 0).all() else None


def _diagonal(matrix: Matrix) -> Matrix:
    return np.asarray([matrix[j + 1, j] for j in range(matrix.shape[1])])
