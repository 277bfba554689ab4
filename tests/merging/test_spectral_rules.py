"""Rules that see task vectors as matrices: TSV, Iso-C, Iso-CTS, WUDI."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lifelong.merging.linear_algebra import nearest_minimizer, polar
from lifelong.merging.rule import Rule
from lifelong.merging.rules.isotropic import IsoC, IsoCTS
from lifelong.merging.rules.tsv import TSV
from lifelong.merging.rules.wudi import WUDI, adam

RULES: list[Rule] = [TSV(), IsoC(), IsoCTS(), WUDI(), WUDI(solver="exact")]


def changes(experts: int, shape: tuple[int, ...], seed: int = 0) -> list[Any]:
    random = np.random.default_rng(seed)
    return [random.normal(size=shape) for _ in range(experts)]


def orthogonal(rows: int, columns: int, seed: int) -> Any:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(rows, columns)))[0]


def singular_values(matrix: Any) -> Any:
    return np.linalg.svd(matrix, compute_uv=False)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{getattr(rule, 'solver', '')}")
def test_what_is_no_matrix_is_averaged(rule: Rule) -> None:
    for shape in [(), (5,), (2, 3, 4)]:
        base, experts = np.ones(shape), [1 + each for each in changes(3, shape)]
        merged = rule(base, experts)
        assert merged.shape == shape
        np.testing.assert_allclose(merged, np.mean(experts, axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{getattr(rule, 'solver', '')}")
@pytest.mark.parametrize("shape", [(), (5,), (6, 4), (1, 3), (0, 3)])
def test_experts_equal_to_the_base_give_it_back(rule: Rule, shape: tuple[int, ...]) -> None:
    base = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(rule(base, [base.copy() for _ in range(3)]), base)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{getattr(rule, 'solver', '')}")
@pytest.mark.parametrize("shape", [(6, 10), (12, 5)])
def test_torch_gives_what_numpy_gives(rule: Rule, shape: tuple[int, ...]) -> None:
    base, *experts = changes(4, shape)
    merged = rule(base, experts)
    other = rule(torch.tensor(base), [*map(torch.tensor, experts)])
    assert other.dtype == torch.float64
    np.testing.assert_allclose(other.numpy(), merged, rtol=1e-8, atol=1e-8)
    narrow = rule(base.astype(np.float32), [each.astype(np.float32) for each in experts])
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, merged, rtol=2e-4, atol=2e-4)


def test_tsv_of_tasks_with_directions_of_their_own_is_their_sum() -> None:
    # Directions are orthogonal across tasks, and each task has no more of them than it may keep: nothing interferes.
    left, right = orthogonal(9, 6, 0), orthogonal(8, 6, 1)
    values = np.array([6.0, 5, 4, 3, 2, 1])
    parts = [(left[:, s] * values[s]) @ right[:, s].T for s in (slice(0, 2), slice(2, 4), slice(4, 6))]
    base = changes(1, (9, 8))[0]
    merged = TSV(scale=0.5)(base, [base + part for part in parts])
    np.testing.assert_allclose(merged, base + 0.5 * sum(parts), atol=1e-10)


def test_tsv_makes_the_kept_directions_orthogonal() -> None:
    shape, tasks = (12, 9), changes(3, (12, 9), 2)
    merged = TSV()(np.zeros(shape), tasks)
    kept = [np.linalg.svd(each) for each in tasks]
    # Orthogonal singular vectors on both sides: the singular values of the merge are the kept ones, unchanged.
    np.testing.assert_allclose(singular_values(merged), -np.sort(-np.concatenate([s[:3] for _, s, _ in kept])))
    # The closest orthogonal matrix solves Procrustes: A^T Q is symmetric and has no negative eigenvalue.
    beside = np.concatenate([u[:, :3] for u, _, _ in kept], axis=1)
    closest = polar(beside)
    np.testing.assert_allclose(closest.T @ closest, np.eye(9), atol=1e-12)
    inner = beside.T @ closest
    np.testing.assert_allclose(inner, inner.T, atol=1e-12)
    assert np.linalg.eigvalsh(inner).min() > 0
    np.testing.assert_allclose(closest @ (closest.T @ merged), merged, atol=1e-10)


def test_tsv_with_more_tasks_than_ranks() -> None:
    tasks = changes(5, (3, 4))
    merged = TSV()(np.zeros((3, 4)), tasks)
    assert np.isfinite(merged).all()
    assert np.linalg.norm(merged) > 0


def test_iso_c_has_a_flat_spectrum() -> None:
    tasks = changes(3, (10, 6))
    merged = IsoC(scale=2.0)(np.zeros((10, 6)), tasks)
    values = singular_values(sum(tasks))
    np.testing.assert_allclose(singular_values(merged), 2 * values.mean(), rtol=1e-10)
    # Of all matrices with that spectrum it is the closest to the sum: their product is symmetric and positive.
    inner = sum(tasks).T @ merged
    np.testing.assert_allclose(inner, inner.T, atol=1e-8)
    assert np.linalg.eigvalsh(inner).min() > 0


def test_iso_c_stays_in_what_the_sum_reaches() -> None:
    left, right = orthogonal(10, 2, 0), orthogonal(6, 2, 1)
    merged = IsoC()(np.zeros((10, 6)), [(left * [3.0, 1.0]) @ right.T, (left * [1.0, 1.0]) @ right.T])
    np.testing.assert_allclose(merged, 3 * left @ right.T, atol=1e-10)


def test_iso_cts_keeps_common_and_adds_specific_directions() -> None:
    shape, tasks = (12, 10), changes(2, (12, 10), 3)
    merged = IsoCTS(common=0.6)(np.zeros(shape), tasks)
    # 10 directions: 6 of the sum, 2 of each task.
    left, values, _ = np.linalg.svd(sum(tasks))
    shared = left[:, :6]
    kept, beside = list(values[:6]), [shared]
    for task in tasks:
        own, size, _ = np.linalg.svd(task - shared @ shared.T @ task)
        kept += list(size[:2])
        beside.append(own[:, :2])
    np.testing.assert_allclose(singular_values(merged), np.mean(kept), rtol=1e-10)
    together = np.concatenate(beside, axis=1)
    projector = together @ np.linalg.pinv(together)
    np.testing.assert_allclose(projector @ merged, merged, atol=1e-10)


def test_iso_cts_with_all_in_common_is_iso_c() -> None:
    base, *tasks = changes(4, (7, 5))
    experts = [base + each for each in tasks]
    np.testing.assert_allclose(IsoCTS(common=1.0)(base, experts), IsoC()(base, experts), atol=1e-10)


def interference(merged: Any, tasks: list[Any]) -> float:
    return sum(float(np.sum(((merged - task) @ task.T) ** 2) / np.sum(task**2)) for task in tasks)


def test_wudi_lowers_the_interference_step_by_step() -> None:
    tasks = [1e-3 * each for each in changes(3, (8, 6))]
    base = np.zeros((8, 6))
    found = [interference(WUDI(steps=steps)(base, tasks), tasks) for steps in (0, 100, 300)]
    exact = interference(WUDI(solver="exact")(base, tasks), tasks)
    assert found[0] == pytest.approx(interference(sum(tasks), tasks))
    assert found[0] > found[1] > found[2] > exact
    # No other matrix does better than the exact one.
    best = WUDI(solver="exact")(base, tasks)
    for seed in range(5):
        assert interference(best + 1e-5 * changes(1, (8, 6), seed)[0], tasks) > exact


def test_wudi_of_tasks_in_other_inputs_is_their_sum() -> None:
    first, second = np.zeros((4, 6)), np.zeros((4, 6))
    first[:, :3], second[:, 3:] = changes(2, (4, 3))
    for rule in (WUDI(), WUDI(solver="exact")):
        # Nothing interferes, so the start is the optimum.
        np.testing.assert_allclose(rule(np.zeros((4, 6)), [first, second]), first + second, atol=1e-8)


def test_wudi_on_one_number() -> None:
    # sum_t (x - a_t)^2 a_t^2 / a_t^2 is least at the mean.
    tasks = [np.array([[each]]) for each in (1.0, 2.0, 6.0)]
    np.testing.assert_allclose(WUDI(solver="exact")(np.zeros((1, 1)), tasks), 3.0, rtol=1e-8)


def test_adam_is_that_of_torch() -> None:
    tasks = [each.astype(np.float64) for each in changes(2, (4, 3))]
    start = sum(tasks)
    gram = sum(each.T @ each / np.sum(each**2) for each in tasks)
    product = sum(each @ each.T @ each / np.sum(each**2) for each in tasks)
    reference = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.Adam([reference], 0.01)
    for _ in range(50):
        optimizer.zero_grad()
        inner = [(reference - torch.tensor(each)) @ torch.tensor(each).T for each in tasks]
        loss = sum(each.square().sum() / float(np.sum(t**2)) for each, t in zip(inner, tasks, strict=True))
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(adam(start.copy(), gram, product, 50, 0.01), reference.detach().numpy(), atol=1e-9)


def test_the_nearest_minimizer_keeps_what_no_sample_reaches() -> None:
    random = np.random.default_rng(0)
    inputs, wanted, start = random.normal(size=(3, 6)), random.normal(size=(2, 6)), random.normal(size=(2, 6))
    found = nearest_minimizer(start, inputs.T @ inputs, wanted @ inputs.T @ inputs)
    exact = start + (wanted - start) @ np.linalg.pinv(inputs) @ inputs
    np.testing.assert_allclose(found, exact, atol=1e-6)
    np.testing.assert_array_equal(nearest_minimizer(start, np.zeros((6, 6)), np.zeros((2, 6))), start)
