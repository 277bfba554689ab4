"""What models have in common, by tensor and by layer, against the same computed from whole vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merging.models import read, tensors, write

from lifelong.merging import engine, planning
from lifelong.merging.checkpoint import open_model
from lifelong.merging.inspection import by_layer, experts_of, inspect, inspect_merge, overall
from lifelong.merging.layers import spots
from lifelong.merging.manifest import fingerprints
from lifelong.merging.manifest import read as read_manifest
from lifelong.merging.recipe import parsed


@pytest.fixture
def models(tmp_path: Path) -> Path:
    base = tensors(0, dtype="F32")
    write(tmp_path / "base", base)
    for seed, name in enumerate("ab", 1):
        write(tmp_path / name, tensors(seed, base, dtype="F32"))
    return tmp_path


def merged(models: Path, recipe: dict[str, Any]) -> Path:
    plan = planning.plan(parsed(recipe), models)
    for _ in engine.merge(plan, models / "out", shard_bytes=10**9):
        pass
    return models / "out"


TIES: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [{"model": "a"}, {"model": "b"}],
    "parameters": {"density": 0.3},
}


def test_layers_are_measured_as_one_long_vector(models: Path) -> None:
    out = merged(models, TIES)
    base, *others = (read(models / name) for name in ("base", "a", "b", "out"))
    opened = {name: open_model(models / name) for name in "ab"}
    found = list(inspect(opened, open_model(models / "base"), open_model(out)))
    names = [name for name in base if ".layers.2." in name]
    vectors = [np.concatenate([(each[name] - base[name]).ravel().astype(float) for name in names]) for each in others]
    spot, layer = by_layer(found)[3]
    assert (spot.layer, layer.name) == ("2", "2")
    np.testing.assert_allclose(layer.norms, [np.linalg.norm(each) for each in vectors], rtol=1e-5)
    np.testing.assert_allclose(layer.base_norm, np.sqrt(sum((base[name] ** 2).sum() for name in names)), rtol=1e-5)
    cosine = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    np.testing.assert_allclose(layer.cosines[0][1], cosine, atol=1e-6)
    np.testing.assert_allclose(layer.kept[1], vectors[2] @ vectors[1] / (vectors[1] @ vectors[1]), rtol=1e-5)
    np.testing.assert_allclose(layer.conflicts, np.mean(vectors[0] * vectors[1] < 0), rtol=1e-6)


def test_kinds_of_a_layer_make_up_the_layer(models: Path) -> None:
    found = list(inspect({name: open_model(models / name) for name in "ab"}, open_model(models / "base")))
    kinds = by_layer(found, kinds=True)
    assert [(spot.layer, spot.kind) for spot, _ in kinds[:4]] == [
        ("embed_tokens", ""),
        ("0", "attn"),
        ("0", "mlp"),
        ("0", "norm"),
    ]
    for spot, layer in by_layer(found):
        parts = [each for other, each in kinds if other.layer == spot.layer]
        assert overall(parts, spot.layer).norms == pytest.approx(layer.norms)


def test_a_merge_is_compared_as_it_was_made(models: Path) -> None:
    out = merged(models, TIES)
    plan = planning.plan(parsed(TIES), models)
    assert experts_of(plan) == ["a", "b"]
    direct = inspect({name: open_model(models / name) for name in "ab"}, open_model(models / "base"), open_model(out))
    assert list(inspect_merge(plan, open_model(out))) == list(direct)


def test_a_model_that_took_no_part_in_a_layer_did_not_move_there(models: Path) -> None:
    parts = [("a", [0, 2]), ("b", [1, 4])]
    slices = [{"sources": [{"model": name, "layer_range": layers}]} for name, layers in parts]
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "slices": slices}
    out = merged(models, recipe)
    found = inspect_merge(planning.plan(parsed(recipe), models), open_model(out))
    layers = {spot.layer: each for spot, each in by_layer(list(found))}
    assert len(read(out)) == 3 + 5 * 3
    assert layers["0"].norms[1] == 0
    assert layers["0"].kept == pytest.approx((1.0, 0.0), abs=1e-5)
    assert layers["4"].norms[0] == 0
    assert layers["4"].kept == pytest.approx((0.0, 1.0), abs=1e-5)


def test_fingerprints_tell_models_apart(models: Path) -> None:
    inputs, result = fingerprints(read_manifest(merged(models, TIES)))
    assert list(inputs) == ["base", "a", "b"]
    assert len({*inputs.values(), result}) == 4
    (models / "out").rename(models / "before")
    assert fingerprints(read_manifest(merged(models, TIES))) == (inputs, result)


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (
            ["lm_head.weight", "model.layers.10.mlp.up.weight", "model.layers.2.mlp.up.weight", "model.norm.weight"],
            ["2", "10", "lm_head", "norm"],
        ),
        (
            ["bert.embeddings.LayerNorm.bias", "bert.encoder.layer.0.output.dense.bias", "bert.pooler.dense.bias"],
            ["embeddings", "0", "pooler"],
        ),
        (
            ["decoder.block.1.wi.weight", "encoder.block.0.wi.weight", "encoder.final_norm.weight", "shared.weight"],
            ["decoder.block.1", "encoder.block.0", "encoder.final_norm", "shared"],
        ),
        (["net.first.weight", "net.first.bias", "net.second.weight"], ["first", "second"]),
        (["a", "b"], ["a", "b"]),
    ],
)
def test_layers_are_read_from_names(names: list[str], layers: list[str]) -> None:
    found = spots(names)
    assert list(dict.fromkeys(found[name].layer for name in sorted(names, key=found.__getitem__))) == layers


def test_kinds_are_the_first_words_that_differ() -> None:
    names = ["h.0.layer.0.wi.weight", "h.0.layer.1.wi.weight", "h.0.layer.1.wi.bias"]
    assert [spot.kind for spot in spots(names).values()] == ["layer.0", "layer.1", "layer.1"]
