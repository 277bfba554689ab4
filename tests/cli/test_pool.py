"""`lifelong pool` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from merging.models import read

from lifelong.cli import main


@pytest.fixture(autouse=True)
def pool(models: Path) -> None:
    assert main(["pool", "create", "pool", "--base", "base"]) == 0
    for name in "ab":
        assert main(["pool", "add", "pool", name, name, "--base", "base"]) == 0


def test_a_pool_merges_as_its_models_do(models: Path) -> None:
    words = ["--rule", "magmax", "--rule.lambda", "0.7"]
    assert main(["pool", "merge", "pool", *words, "--out", "one"]) == 0
    assert main(["merge", *words, "--base", "base", "a", "b", "--out", "two"]) == 0
    one, two = read(models / "one"), read(models / "two")
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name].astype(np.float64), two[name].astype(np.float64), rtol=0.02, atol=1e-6)


def test_what_is_there_is_listed(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pool", "add", "pool", "small", "a", "--format", "sparse", "--density", "0.2"]) == 0
    assert main(["pool", "remove", "pool", "b"]) == 0
    capsys.readouterr()
    assert main(["pool", "list", "pool", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["format"]) for each in shown["members"]] == [("a", "float32"), ("small", "sparse")]
    assert main(["pool", "list", "pool"]) == 0
    assert "2 experts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ad", "pool"], "unknown action 'ad', did you mean 'add'?"),
        (["list", "base"], "base is no pool"),
        (["create", "other"], "--base is missing"),
        (["create", "pool", "--base", "base"], "exists and is not empty"),
        (["add", "pool", "c"], "add takes a folder, a name and a model"),
        (["add", "pool", "a", "a"], "has an expert 'a' already"),
        (["add", "pool", "c", "c"], "no model at c"),
        (["add", "pool", "c", "a", "--base", "a"], "is of another base"),
        (["add", "pool", "c", "a", "--density", "much"], "density = 'much' must be a number"),
        (["remove", "pool", "aa"], "unknown expert 'aa', did you mean 'a'?"),
        (["merge", "pool"], "--out is missing"),
        (["merge", "pool", "--out", "base"], "base exists"),
        (["merge", "pool", "--rule", "magmix", "--out", "out"], "did you mean 'magmax'?"),
        (["merge", "pool", "--rule", "fisher", "--out", "out"], "rule fisher needs the fisher statistics"),
        (["merge", "pool", "--rule.scal", "1", "--out", "out"], "did you mean 'scale'?"),
        (["create", "other", "--base", "base", "--limit", "much"], "limit = 'much' must be a size"),
        (["interpolate", "pool", "a"], "interpolate takes a folder and two names"),
        (["interpolate", "pool", "a", "bb", "--out", "out"], "unknown expert 'bb', did you mean 'b'?"),
        (["interpolate", "pool", "a", "b", "--weight", "half", "--out", "out"], "weight = 'half' must be a share"),
        (["interpolate", "pool", "a", "b", "--weight", "nan", "--out", "out"], "weight = nan must be a share, 0 to 1"),
        (["interpolate", "pool", "a", "b", "--weight", "2", "--out", "out"], "weight = 2.0 must be a share, 0 to 1"),
        (["nearest", "pool", "--model", "mlp"], "--data is missing"),
        (["nearest", "pool", "--data", "digits"], "--model is missing"),
        (["nearest", "pool", "--data", "digits", "--model", "mlp", "--count", "0"], "count = '0' must be a number of"),
        (["nearest", "pool", "--data", "digits", "--model", "mlp"], "was added with a prototype"),
    ],
)
def test_wrong_input_is_one_line(models: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["pool", *words]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert len(told.splitlines()) == 1


def test_interpolation_is_half_of_each(models: Path) -> None:
    assert main(["pool", "interpolate", "pool", "a", "b", "--weight", "0.25", "--out", "mixed"]) == 0
    first, second, mixed = (read(models / name) for name in ("a", "b", "mixed"))
    for name, each in mixed.items():
        expected = 0.75 * first[name].astype(np.float64) + 0.25 * second[name].astype(np.float64)
        np.testing.assert_allclose(each.astype(np.float64), expected, rtol=0.02, atol=1e-6)


def test_the_nearest_expert_is_that_of_the_same_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = ["--model", "mlp", "--model.hidden", "32"]
    split = ["--stream", "split", "--tasks", "5", "--method", "magmax", "--method.pool", "experts", "--epochs", "2"]
    assert main(["run", *split, *network, "--out", str(tmp_path / "run")]) == 0
    for first in range(0, 10, 2):
        capsys.readouterr()
        asked = ["--data", f"digits:{first}-{first + 1}", "--count", "2", "--json"]
        assert main(["pool", "nearest", "experts", *network, *asked]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found[0]["name"].endswith(f"{first}-{first + 1}")
        assert found[0]["cosine"] == pytest.approx(1, abs=1e-5)
        assert found[0]["cosine"] > found[1]["cosine"]
    wider = ["--data", "digits", "--model", "mlp", "--model.hidden", "48"]
    assert main(["pool", "nearest", "experts", *wider]) == 2
    assert "has trunk.1.bias of shape [32], and model mlp of shape [48]" in capsys.readouterr().err


def test_samples_are_compared_as_the_run_saw_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network with batch norm that starts from an earlier one, and inputs that are standardised."""
    network = ["--model", "convnet", "--model.channels", "4,8"]
    shared = ["--scenario", "domain", "--epochs", "1", "--threads", "1", *network]
    start = ["--stream", "permuted", "--data", "digits", "--tasks", "1", "--epochs", "3", *network]
    assert main(["run", *start, "--out", str(tmp_path / "start")]) == 0
    domains = ["--stream", "domains", "--data", "digits:0-4,digits:5-9", "--standardize", "--method", "magmax"]
    weights = ["--weights", str(tmp_path / "start" / "model.safetensors")]
    assert main(["run", *domains, *shared, *weights, "--method.pool", "experts", "--out", str(tmp_path / "run")]) == 0
    for data in ("digits:0-4", "digits:5-9"):
        capsys.readouterr()
        assert main(["pool", "nearest", "experts", "--data", data, *network, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found[0]["name"].endswith(data.replace(":", "-"))
        assert found[0]["cosine"] == pytest.approx(1, abs=1e-5)
    # Three classes, where the head, which is merged here, has five outputs.
    assert main(["pool", "nearest", "experts", "--data", "digits:6-8", *network]) == 0
    capsys.readouterr()
    for words, says in (
        (["--data", "digits,digits"], "is more than one data set"),
        (["--data", "digits", "--pad", "2"], "saw inputs of shape [1, 8, 8], and digits has [1, 12, 12]"),
    ):
        assert main(["pool", "nearest", "experts", *words, *network]) == 2
        assert says in capsys.readouterr().err
