"""Every measure against matrices computed by hand; rows are stages from before any learning on, columns are tasks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lifelong.training import metrics

#                 task 1  2    3
MATRIX = np.array(
    [
        [0.1, 0.2, 0.3],
        [0.9, 0.4, 0.1],
        [0.6, 0.8, 0.5],
        [0.7, 0.5, 1.0],
    ]
)
# Old tasks get better all the time.
RISING = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.6, 0.4, 0.0], [0.9, 0.8, 0.3]])
ONE = np.array([[0.1], [0.9]])


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (metrics.average_accuracy, (0.7 + 0.5 + 1.0) / 3),
        (metrics.average_incremental_accuracy, (0.9 + (0.6 + 0.8) / 2 + (0.7 + 0.5 + 1.0) / 3) / 3),
        (metrics.learning_accuracy, (0.9 + 0.8 + 1.0) / 3),
        (metrics.old_accuracy, (0.7 + 0.5) / 2),
        (metrics.forgetting, ((0.9 - 0.7) + (0.8 - 0.5)) / 2),
        (metrics.backward_transfer, ((0.7 - 0.9) + (0.5 - 0.8)) / 2),
        (metrics.forward_transfer, ((0.4 - 0.2) + (0.5 - 0.3)) / 2),
    ],
)
def test_by_hand(measure: Callable[[metrics.Matrix], float], expected: float) -> None:
    assert measure(MATRIX) == pytest.approx(expected, abs=1e-12)


def test_forgetting_may_be_negative() -> None:
    assert metrics.forgetting(RISING) == pytest.approx(((0.6 - 0.9) + (0.4 - 0.8)) / 2, abs=1e-12)


def test_forgetting_counts_from_the_best_stage_after_the_task_was_learned() -> None:
    matrix = np.array([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.8, 0.7, 0.0], [0.6, 0.2, 0.9]])
    # Task 1 was at its best (of what counts) at 0.8; what it was before being learned does not count, nor does task 2's
    # 1.0 from before.
    assert metrics.forgetting(matrix) == pytest.approx(((0.8 - 0.6) + (0.7 - 0.2)) / 2, abs=1e-12)
    assert metrics.backward_transfer(matrix) == pytest.approx(((0.6 - 0.5) + (0.2 - 0.7)) / 2, abs=1e-12)


@pytest.mark.parametrize(
    "measure", [metrics.old_accuracy, metrics.forgetting, metrics.backward_transfer, metrics.forward_transfer]
)
def test_one_task_has_no_old_ones(measure: Callable[[metrics.Matrix], float | None]) -> None:
    assert measure(ONE) is None


@pytest.mark.parametrize(
    "measure", [metrics.average_accuracy, metrics.average_incremental_accuracy, metrics.learning_accuracy]
)
def test_one_task(measure: Callable[[metrics.Matrix], float]) -> None:
    assert measure(ONE) == 0.9


def test_weights_are_numbers_of_test_samples() -> None:
    weights = [1, 2, 5]
    last = (0.7 * 1 + 0.5 * 2 + 1.0 * 5) / 8
    assert metrics.average_accuracy(MATRIX, weights) == pytest.approx(last, abs=1e-12)
    expected = (0.9 + (0.6 * 1 + 0.8 * 2) / 3 + last) / 3
    assert metrics.average_incremental_accuracy(MATRIX, weights) == pytest.approx(expected, abs=1e-12)


def test_equal_weights_change_nothing() -> None:
    for measure in (metrics.average_accuracy, metrics.average_incremental_accuracy):
        assert measure(MATRIX, [7, 7, 7]) == pytest.approx(measure(MATRIX), abs=1e-12)


def test_intransigence_compares_with_the_joint_run() -> None:
    joint = np.array([[0.1, 0.1, 0.1], [0.95, 0.1, 0.1], [0.9, 0.9, 0.2], [0.8, 0.85, 0.9]])
    expected = ((0.95 - 0.9) + (0.9 - 0.8) + (0.9 - 1.0)) / 3
    assert metrics.intransigence(MATRIX, joint) == pytest.approx(expected, abs=1e-12)


def test_intransigence_against_a_joint_run_that_trained_once() -> None:
    joint = np.array([[0.1, 0.1, 0.1]] * 3 + [[0.8, 0.85, 0.9]])
    expected = ((0.8 - 0.9) + (0.85 - 0.8) + (0.9 - 1.0)) / 3
    assert metrics.intransigence(MATRIX, joint) == pytest.approx(expected, abs=1e-12)


def test_intransigence_of_one_task() -> None:
    assert metrics.intransigence(ONE, np.array([[0.2], [0.95]])) == pytest.approx(0.05, abs=1e-12)
