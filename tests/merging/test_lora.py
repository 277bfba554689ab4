"""Adapters: added to a model as it is read, merged as what they do, and taken out of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merging.models import read, tensors, write, write_file

from lifelong.cli import main
from lifelong.errors import InputError
from lifelong.merging import engine, planning
from lifelong.merging.checkpoint import open_model
from lifelong.merging.lora import extract, merge_adapters, with_adapter
from lifelong.merging.recipe import parsed
from lifelong.merging.rules import RULES

Q = "model.layers.{}.attn.q.weight"
UP = "model.layers.{}.mlp.up.weight"


def adapter(folder: Path, names: dict[str, tuple[int, int]], seed: int, rank: int = 3, **config: Any) -> Path:
    """Write an adapter of random halves as peft lays it out."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    halves = {}
    for name, (rows, columns) in names.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        halves[f"{module}.lora_A.weight"] = random.standard_normal((rank, columns)).astype(np.float32)
        halves[f"{module}.lora_B.weight"] = random.standard_normal((rows, rank)).astype(np.float32)
    write_file(folder / "adapter_model.safetensors", halves)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 6, **config}))
    return folder


def change(folder: Path, name: str, scale: float) -> np.ndarray[Any, Any]:
    """What the adapter does to a weight, in float64."""
    module = f"base_model.model.{name.removesuffix('.weight')}"
    values = read(folder)
    a, b = (values[f"{module}.lora_{half}.weight"].astype(float) for half in "AB")
    return scale * b @ a


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base", tensors(0, dtype="F32", rows=5600))


SHAPES = {Q.format(1): (24, 24), UP.format(2): (72, 24)}


@pytest.mark.parametrize(("config", "scale"), [({}, 2.0), ({"use_rslora": True}, 6 / 3**0.5)])
def test_a_model_with_an_adapter_is_read_as_their_sum(config: Any, scale: float, base: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "a", SHAPES, 1, **config)
    model = with_adapter(open_model(base), path)
    for name in model:
        expected = read(base)[name].astype(float)
        if name in SHAPES:
            expected = expected + change(path, name, scale)
        found = model.values(name).read(0, expected.size)
        np.testing.assert_allclose(found, expected.reshape(-1), rtol=1e-5, atol=1e-5)
        for start, stop in ((5, 90), (24, 48), (1, 2)):
            np.testing.assert_array_equal(model.values(name).read(start, stop), found[start:stop])


def test_an_adapter_of_an_embedding(base: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    halves = {
        "lora_embedding_A": random.standard_normal((2, 5600)),
        "lora_embedding_B": random.standard_normal((24, 2)),
    }
    named = {f"base_model.model.model.embed_tokens.{key}": each.astype(np.float32) for key, each in halves.items()}
    folder = tmp_path / "a"
    folder.mkdir()
    write_file(folder / "adapter_model.safetensors", named)
    (folder / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 2}')
    name = "model.embed_tokens.weight"
    found = with_adapter(open_model(base), folder).values(name).read(0, 5600 * 24).reshape(5600, 24)
    expected = read(base)[name] + (halves["lora_embedding_B"] @ halves["lora_embedding_A"]).T
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_recipes_name_an_adapter_behind_a_plus(base: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "a", SHAPES, 1)
    adapter(tmp_path / "b", {Q.format(1): (24, 24)}, 2)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "base+a"}, {"model": "base+b"}],
    }
    list(engine.merge(planning.plan(parsed(recipe), tmp_path), tmp_path / "out", shard_bytes=10**9))
    merged, plain = read(tmp_path / "out"), read(base)
    for name, each in merged.items():
        expected = plain[name].astype(float)
        if name in SHAPES:
            expected = expected + change(tmp_path / "a", name, 2)
        if name == Q.format(1):
            expected = expected + change(tmp_path / "b", name, 2)
        np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rule", ["linear", "task_arithmetic", "ties"])
def test_adapters_are_merged_as_what_they_do(rule: str, tmp_path: Path) -> None:
    paths = [adapter(tmp_path / "a", SHAPES, 1), adapter(tmp_path / "b", {Q.format(1): (24, 24)}, 2)]
    full = merge_adapters(RULES[rule](), paths, tmp_path / "out", rank=24)
    assert full == {Q.format(1): 24, UP.format(2): 24}
    for name, shape in SHAPES.items():
        dense = [
            change(tmp_path / "a", name, 2),
            change(tmp_path / "b", name, 2) if name in Q.format(1) else np.zeros(shape),
        ]
        expected = RULES[rule]()(np.zeros(shape), dense, name)
        np.testing.assert_allclose(change(tmp_path / "out", name, 1), expected, atol=1e-4)
    assert merge_adapters(RULES[rule](), paths, tmp_path / "small") == {Q.format(1): 3, UP.format(2): 3}


def test_what_was_extracted_and_added_again_is_the_model(tmp_path: Path) -> None:
    before = tensors(0, dtype="F32")
    after = dict(before)
    path = adapter(tmp_path / "a", SHAPES, 1)
    for name in SHAPES:
        after[name] = (before[name] + change(path, name, 0.01)).astype(np.float32)
    after["model.norm.weight"] = before["model.norm.weight"] + np.float32(0.001)
    write(tmp_path / "base", before)
    write(tmp_path / "tuned", after)
    found = extract(open_model(tmp_path / "base"), open_model(tmp_path / "tuned"), tmp_path / "out", rank=3)
    assert found.ranks == {Q.format(1): 3, UP.format(2): 3}
    assert found.left_out == ("model.norm.weight",)
    assert 0.999 < found.energy < 1
    again = with_adapter(open_model(tmp_path / "base"), tmp_path / "out")
    for name in SHAPES:
        read_again = again.values(name).read(0, after[name].size).reshape(after[name].shape)
        np.testing.assert_allclose(read_again, after[name], atol=1e-5)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_energy_takes_the_least_rank_that_reaches_it(energy: float, tmp_path: Path) -> None:
    write(tmp_path / "base", before := tensors(0, dtype="F32"))
    write(tmp_path / "tuned", tensors(1, before, dtype="F32"))
    found = extract(open_model(tmp_path / "base"), open_model(tmp_path / "tuned"), tmp_path / "out", energy=energy)
    after = read(tmp_path / "tuned")
    for name, rank in found.ranks.items():
        squares = np.linalg.svd(after[name].astype(float) - before[name], compute_uv=False) ** 2
        shares = squares.cumsum() / squares.sum()
        assert shares[rank - 1] >= energy - 1e-6
        assert rank == 1 or shares[rank - 2] < energy


def test_adapters_that_do_not_fit_are_refused(base: Path, tmp_path: Path) -> None:
    model = open_model(base)
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        with_adapter(model, base)
    with pytest.raises(InputError, match=r"does not have: nowhere\.weight"):
        with_adapter(model, adapter(tmp_path / "a", {"nowhere.weight": (4, 4)}, 1))
    with pytest.raises(InputError, match=r"by \[24, 25\], and it is \[24, 24\]"):
        with_adapter(model, adapter(tmp_path / "b", {Q.format(0): (24, 25)}, 1))
    with pytest.raises(InputError, match="only plain LoRA"):
        with_adapter(model, adapter(tmp_path / "c", SHAPES, 1, use_dora=True))
    with pytest.raises(InputError, match="only plain LoRA"):
        with_adapter(model, adapter(tmp_path / "d", SHAPES, 1, peft_type="LOHA"))
    recipe = {"merge_method": "linear", "models": [{"model": "base"}, {"model": "e"}]}
    adapter(tmp_path / "e", SHAPES, 1)
    with pytest.raises(InputError, match=r"write MODEL\+e"):
        planning.plan(parsed(recipe), tmp_path)


def test_the_commands(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tuned", tensors(1, read(base), dtype="F32", rows=5600))
    assert main(["merge", "extract", "base", "tuned", "--out", "low", "--rank", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["ranks"].values()) == {2}
    assert main(["merge", "--rule", "ties", "low", "low", "--out", "both", "--rule.lambda", "0.5"]) == 0
    assert "ranks up to 2" in capsys.readouterr().out
    assert main(["merge", "inspect", "base+low", "tuned", "--base", "base"]) == 2
    capsys.readouterr()
    assert main(["merge", "inspect", "tuned", "--base", "base", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["models"] == ["tuned"]
    assert len(shown["tensors"]) == 15
    assert main(["merge", "inspect", "tuned", "base", "--merged", "tuned"]) == 0
    assert "sign conflicts" in capsys.readouterr().out
    for words, says in {
        ("extract", "base", "--out", "x"): "extract takes",
        ("extract", "base", "tuned", "--out", "x", "--rank", "0"): "rank",
        ("extract", "base", "tuned", "--out", "x", "--energy", "2"): "energy",
        ("extract", "base", "base", "--out", "x"): "no weight that differs",
        ("inspect", "base"): "takes two models",
    }.items():
        assert main(["merge", *words]) == 2
        assert says in capsys.readouterr().err
