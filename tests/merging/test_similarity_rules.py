"""Attention and selective merging against slow float64 references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lifelong.errors import InputError
from lifelong.merging.rule import BLOCK
from lifelong.merging.rules.attention import Attention
from lifelong.merging.rules.selective import Selective


def models(shape: tuple[int, ...], experts: int = 3, seed: int = 0) -> tuple[Any, list[Any]]:
    random = np.random.default_rng(seed)
    base = random.normal(size=shape).astype(np.float32)
    common = random.normal(size=shape)
    return base, [
        (base + 0.1 * (common + (t + 1) * random.normal(size=shape))).astype(np.float32) for t in range(experts)
    ]


def cosine(a: Any, b: Any) -> float:
    return float(a.ravel() @ b.ravel() / (np.linalg.norm(a) * np.linalg.norm(b)))


def queries(changes: list[Any], reference: Any) -> list[Any]:
    if reference == "mean":
        return [np.mean(changes, axis=0)] * len(changes)
    if reference == "peers":
        return [np.mean([c for s, c in enumerate(changes) if s != t], axis=0) for t in range(len(changes))]
    return [changes[reference]] * len(changes)


@pytest.mark.parametrize("reference", ["mean", "peers", 1])
@pytest.mark.parametrize("shape", [(5, 7), (11,), (BLOCK + 3,)])
def test_attention_is_a_softmax_of_cosines(reference: Any, shape: tuple[int, ...]) -> None:
    base, experts = models(shape)
    wide = base.astype(np.float64)
    changes = [each - wide for each in experts]
    scores = [cosine(q, c) / 0.3 for q, c in zip(queries(changes, reference), changes, strict=True)]
    weights = np.exp(scores) / np.exp(scores).sum()
    expected = wide + 0.7 * sum(w * c for w, c in zip(weights, changes, strict=True))
    merged = Attention(query=reference, temperature=0.3, scale=0.7)(base, experts)
    np.testing.assert_allclose(merged, expected, rtol=2e-6, atol=2e-6)
    other = Attention(query=reference, temperature=0.3, scale=0.7)(torch.tensor(base), [*map(torch.tensor, experts)])
    np.testing.assert_allclose(other.numpy(), merged, rtol=1e-6, atol=1e-6)


def test_the_ends_of_the_temperature_are_the_average_and_the_best_aligned_expert() -> None:
    base, experts = models((6, 4))
    np.testing.assert_allclose(Attention(temperature=1e9)(base, experts), np.mean(experts, axis=0), atol=1e-6)
    changes = [each - base for each in experts]
    best = int(np.argmax([cosine(np.mean(changes, axis=0), change) for change in changes]))
    np.testing.assert_allclose(Attention(temperature=1e-6)(base, experts), experts[best], atol=1e-6)
    # A query of one expert is best aligned with itself.
    np.testing.assert_allclose(Attention(query=2, temperature=1e-6)(base, experts), experts[2], atol=1e-6)


def test_selective_averages_those_that_agree() -> None:
    base = np.zeros(4, np.float32)
    along, across = np.array([1, 1, 0, 0], np.float32), np.array([0, 0, 1, -1], np.float32)
    experts = [along, 3 * along, across]
    # The mean is (4/3, 4/3, 1/3, -1/3): cosine 0.97 with `along`, 0.24 with `across`.
    np.testing.assert_allclose(Selective(threshold=0.9)(base, experts), 2 * along)
    np.testing.assert_allclose(Selective(threshold=0.2)(base, experts), np.mean(experts, axis=0))
    np.testing.assert_allclose(Selective(reference=2)(base, experts), across)
    np.testing.assert_allclose(Selective(threshold=1.0, reference=1)(base, experts), 2 * along, rtol=1e-6)
    # Without itself, `across` has nothing in common with its peers.
    np.testing.assert_allclose(Selective(threshold=0.01, reference="peers")(base, experts), 2 * along)


@pytest.mark.parametrize(
    ("otherwise", "expected"), [("all", [1 / 3, 1.0]), ("base", [0, 0]), ("best", [0, 3]), (0, [1, 0])]
)
def test_selective_where_none_agrees(otherwise: Any, expected: list[float]) -> None:
    base = np.zeros(2, np.float32)
    experts = [np.array(each, np.float32) for each in ([1, 0], [0, 3], [0, 0])]
    merged = Selective(threshold=0.999, otherwise=otherwise)(base, experts)
    np.testing.assert_allclose(merged, expected, rtol=1e-6)


def test_an_expert_that_is_not_there() -> None:
    base, experts = models((3,))
    for rule in (Attention(query=3), Selective(reference=-1), Selective(otherwise=7)):
        with pytest.raises(InputError, match="names no expert: there are 3, counted from 0"):
            rule(base, experts)


def test_task_vectors_that_cancel_have_no_direction() -> None:
    base = np.ones(3, np.float32)
    change = np.array([1, 2, 3], np.float32)
    # The mean is 0, all cosines are 0, and the softmax is even.
    np.testing.assert_array_equal(Attention()(base, [base + change, base - change]), base)
