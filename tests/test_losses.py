"""Losses and scores of labels and numbers, against their definitions in float64."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import r2_score
from torch import Tensor
from torch.nn import functional as F

from lifelong import losses


def mixed() -> tuple[Tensor, Tensor]:
    """Rows of a task of three classes, of one of two, and of one that predicts a number."""
    torch.manual_seed(0)
    outputs = torch.randn(6, 3, dtype=torch.float64)
    outputs[2:4, 2] = -math.inf
    outputs[4:, 1:] = -math.inf
    return outputs.requires_grad_(), torch.tensor([2.0, 0.0, 1.0, 0.0, -0.7, 1.3])


def by_hand(outputs: Tensor, targets: Tensor) -> list[Tensor]:
    terms = []
    for row, target in zip(outputs, targets.tolist(), strict=True):
        known = row[row.isfinite()]
        terms.append((target - known[0]) ** 2 / 2 if len(known) == 1 else -known.log_softmax(0)[int(target)])
    return terms


def test_a_batch_may_hold_labels_and_numbers() -> None:
    outputs, targets = mixed()
    expected = torch.stack(by_hand(outputs, targets))
    torch.testing.assert_close(losses.task_loss(outputs, targets, "none"), expected)
    torch.testing.assert_close(losses.task_loss(outputs, targets, "sum"), expected.sum())
    (found,) = torch.autograd.grad(losses.task_loss(outputs, targets), outputs, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.mean(), outputs)
    torch.testing.assert_close(found, wanted)


def test_labels_alone_are_cross_entropy_whatever_their_dtype() -> None:
    torch.manual_seed(0)
    outputs, labels = torch.randn(9, 4), torch.randint(4, (9,))
    expected = F.cross_entropy(outputs, labels)
    assert torch.equal(losses.task_loss(outputs, labels), expected)
    torch.testing.assert_close(losses.task_loss(outputs, labels.float()), expected)


def test_one_class_is_no_number() -> None:
    assert float(losses.task_loss(torch.randn(3, 1), torch.zeros(3, dtype=torch.int64))) == 0
    assert not losses.are_numbers(torch.randn(3, 1), torch.zeros(3, dtype=torch.int64))


def test_scores_of_numbers_are_r2_and_of_labels_the_share_that_is_right() -> None:
    torch.manual_seed(0)
    targets, outputs = torch.randn(50) * 3 + 1, torch.randn(50, 1)
    found = losses.score([(outputs[:20], targets[:20]), (outputs[20:], targets[20:])])
    assert found == pytest.approx(r2_score(targets, outputs[:, 0]), rel=1e-6)
    labels, logits = torch.tensor([0, 1, 2, 1]), torch.eye(3)[[0, 1, 1, 1]]
    assert losses.score([(logits[:3], labels[:3]), (logits[3:], labels[3:])]) == 0.75
    assert losses.score([(logits, labels.float())]) == 0.75
    assert losses.score([(logits[:, :0], labels)]) == 0


def test_the_score_of_numbers_that_do_not_differ() -> None:
    assert losses.score([(torch.ones(3, 1), torch.ones(3))]) == 1
    assert losses.score([(torch.zeros(3, 1), torch.ones(3))]) == 0
