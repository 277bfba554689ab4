"""Consensus merging and EMR: which numbers of which expert survive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

import lifelong
from lifelong.errors import InputError
from lifelong.merging.modulators import Modulator, load, modulated, modulators, save
from lifelong.merging.rules.consensus import Consensus
from lifelong.merging.rules.emr import EMR


def models(shape: tuple[int, ...], experts: int = 3, seed: int = 0) -> tuple[Any, list[Any]]:
    random = np.random.default_rng(seed)
    base = random.normal(size=shape)
    return base, [base + random.normal(size=shape) * (random.random(size=shape) < 0.7) for _ in range(experts)]


@pytest.mark.parametrize("agreement", [1, 2, 3])
def test_consensus_counts_tall_masks_number_by_number(agreement: int) -> None:
    base, experts = models((40,))
    thresholds = (0.2, 0.5, 0.9)
    expected = base.copy()
    for i in range(40):
        changes = [expert[i] - base[i] for expert in experts]
        total = sum(changes)
        votes = sum(abs(c) >= t * abs(total - c) for c, t in zip(changes, thresholds, strict=True))
        expected[i] += 0.3 * total * (votes >= agreement)
    rule = Consensus(threshold=thresholds, agreement=agreement, scale=0.3)
    np.testing.assert_allclose(rule(base, experts), expected, atol=1e-12)
    other = rule(torch.tensor(base), [*map(torch.tensor, experts)])
    np.testing.assert_allclose(other.numpy(), expected, atol=1e-12)
    assert 0 < np.sum(expected != base) < 40


def test_consensus_drops_what_one_task_alone_needs() -> None:
    base = np.zeros(3)
    experts = [np.array([1.0, 5.0, 0.0]), np.array([1.0, 0.0, 0.0])]
    np.testing.assert_array_equal(Consensus()(base, experts), [2.0, 0.0, 0.0])
    np.testing.assert_array_equal(Consensus(agreement=1)(base, experts), [2.0, 5.0, 0.0])
    with pytest.raises(InputError, match="agreement = 3 of 2 experts would keep nothing"):
        Consensus(agreement=3)(base, experts)


def test_emr_elects_sign_and_largest_magnitude() -> None:
    base, experts = models((50,))
    changes = np.array(experts) - base
    expected = []
    for column in changes.T:
        sign = 1.0 if column.sum() >= 0 else -1.0
        expected.append(sign * max(0.0, *(sign * column)))
    np.testing.assert_allclose(EMR()(base, experts), base + expected, atol=1e-12)
    np.testing.assert_allclose(EMR()(torch.tensor(base), [*map(torch.tensor, experts)]), base + expected, atol=1e-12)


def trees(seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    base, experts = {}, [{}, {}, {}]
    for number, (name, shape) in enumerate([("a", (5, 3)), ("b", (7,)), ("c", ())]):
        base[name], tensors = models(shape, seed=seed + number)
        for tree, tensor in zip(experts, tensors, strict=True):
            tree[name] = tensor
    return base, experts


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_emr_modulators_keep_sign_and_size_of_each_expert(library: Any) -> None:
    base, experts = trees()
    base = {name: library(each) for name, each in base.items()}
    experts = [{name: library(each) for name, each in tree.items()} for tree in experts]
    shared = lifelong.merge("emr", base, experts)
    found = modulators(base, experts, shared)
    for expert, modulator in zip(experts, found, strict=True):
        made = modulated(base, shared, modulator)
        sizes = [0.0, 0.0]
        for name, first in base.items():
            change, own = np.asarray(made[name] - first), np.asarray(expert[name] - first)
            elected = np.asarray(shared[name] - first)
            agrees = own * elected > 0
            # Where the expert has the elected sign it gets the rescaled elected number, elsewhere the base's.
            np.testing.assert_allclose(change, modulator.rescaler * elected * agrees, atol=1e-12)
            sizes[0] += np.abs(own).sum()
            sizes[1] += np.abs(change).sum()
        # The rescaler gives the mean magnitude of the expert's own task vector back.
        assert sizes[1] == pytest.approx(sizes[0])
        assert sum(mask.nbytes for mask in modulator.masks.values()) == 2 + 1 + 1


def test_emr_of_one_expert_is_that_expert() -> None:
    base, experts = trees()
    shared = lifelong.merge("emr", base, experts[:1])
    (modulator,) = modulators(base, experts[:1], shared)
    assert modulator.rescaler == pytest.approx(1.0)
    made = modulated(base, shared, modulator)
    for name, tensor in experts[0].items():
        np.testing.assert_allclose(made[name], tensor, atol=1e-12)


def test_emr_of_the_base_itself() -> None:
    base, _ = trees()
    shared = lifelong.merge("emr", base, [base, base])
    for modulator in modulators(base, [base, base], shared):
        made = modulated(base, shared, modulator)
        for name, tensor in base.items():
            np.testing.assert_array_equal(made[name], tensor)


def test_a_modulator_of_another_model_is_refused() -> None:
    base, experts = trees()
    shared = lifelong.merge("emr", base, experts)
    with pytest.raises(InputError, match="mask of tensor 'a' is of another size"):
        modulated(base, shared, Modulator({"a": np.zeros(9, np.uint8)}, 1.0))


def test_a_modulator_on_disk(tmp_path: Path) -> None:
    base, experts = trees()
    shared = lifelong.merge("emr", base, experts)
    for expert in modulators(base, experts, shared):
        path = save(tmp_path / "modulators" / "a.safetensors", expert)
        found = load(path)
        assert found.rescaler == expert.rescaler
        for name, tensor in modulated(base, shared, expert).items():
            np.testing.assert_array_equal(modulated(base, shared, found)[name], tensor)
    assert [each.name for each in path.parent.iterdir()] == ["a.safetensors"]
    # What any reader of the format finds: one bit a number, the first one highest.
    bits = np.unpackbits(safetensors.numpy.load_file(path)["b"])
    agrees = (experts[-1]["b"] - base["b"]) * (shared["b"] - base["b"]) > 0
    np.testing.assert_array_equal(bits[: base["b"].size], agrees)


def test_a_file_that_is_no_modulator_is_refused(tmp_path: Path) -> None:
    path, masks = tmp_path / "a.safetensors", {"a": np.zeros(2, np.uint8)}
    good = {"format": "lifelong-modulator", "bits": "big", "rescaler": "0.5"}
    safetensors.numpy.save_file(masks, path, good)
    assert load(path).rescaler == 0.5
    wrong = [(masks, {**good, "rescaler": "nan"}), (masks, {**good, "bits": "little"}), (masks, {"format": "pt"})]
    for tensors, metadata in [*wrong, ({"a": np.zeros(2, np.float32)}, good)]:
        safetensors.numpy.save_file(tensors, path, metadata)
        with pytest.raises(InputError, match="is no modulator"):
            load(path)
