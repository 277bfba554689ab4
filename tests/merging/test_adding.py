"""Adding experts one at a time gives the bits of merging them all at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from merging.models import read, tensors, write, write_file

from lifelong.cli import main
from lifelong.merging.engine import MANIFEST
from lifelong.merging.rule import Folding
from lifelong.merging.rules import RULES
from lifelong.merging.statistics import path_of

FOLDING = [name for name, rule in RULES.items() if issubclass(rule, Folding)]


@pytest.fixture(params=["BF16"])
def models(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tensors(0, dtype=request.param, rows=5600)
    write(tmp_path / "base", base)
    for seed, name in enumerate("abcd", 1):
        write(tmp_path / name, tensors(seed, base, dtype=request.param, rows=5600), shards=seed % 3 + 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def informed(model: Path, kind: str, seed: int) -> None:
    """Write statistics of a model: of the weights inside its layers, in their shapes or as Gram matrices."""
    random = np.random.default_rng(seed)
    shapes = {name: each.shape for name, each in read(model).items() if each.ndim == 2 and "layers" in name}
    made = {name: random.standard_normal((30, shape[1])) for name, shape in shapes.items()}
    grams = {name: (each.T @ each / 30).astype(np.float32) for name, each in made.items()}
    # Some that matter to nobody, and some to a few.
    squares = {name: random.gamma(0.1, size=shape).astype(np.float32) for name, shape in shapes.items()}
    cared = {name: np.where(each > 0.01, each, 0) for name, each in squares.items()}
    (model / "statistics").mkdir(exist_ok=True)
    write_file(path_of(model, kind), {"gram": grams, "fisher": cared}[kind])


def merge(*words: str) -> None:
    assert main(["merge", *words]) == 0


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["merge", *words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("models", ["BF16", "F64"], indirect=True)
@pytest.mark.parametrize("rule", FOLDING)
def test_one_at_a_time_is_all_at_once(rule: str, models: Path) -> None:
    if kind := RULES[rule].statistic:
        for seed, name in enumerate("abcd"):
            informed(models / name, kind, seed)
    words = ["--rule", rule, *(["--base", "base"] if RULES[rule].needs_base else [])]
    weighted = "weight" in RULES[rule].per_expert
    merge(*words, *"abcd", "--out", "whole", *(["--rule.weight", "1,2,0.3,0.7"] if weighted else []))
    merge(*words, *"ab", "--out", "grown", "--keep-running", *(["--rule.weight", "1,2"] if weighted else []))
    for name, weight in (("c", "0.3"), ("d", "0.7")):
        merge("--into", "grown", name, *(["--rule.weight", weight] if weighted else []), "--threads", "3")
        shutil.rmtree(name)
    whole, grown = read(models / "whole"), read(models / "grown")
    assert all(whole[name].tobytes() == grown[name].tobytes() for name in whole)
    manifests = [json.loads((models / each / MANIFEST).read_text()) for each in ("whole", "grown")]
    assert manifests[0]["tensors"] == manifests[1]["tensors"]
    assert sorted(path.name for path in models.iterdir()) == ["a", "b", "base", "grown", "whole"]


def test_statistics_that_only_some_experts_have_are_refused(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("abc"):
        informed(models / name, "fisher", seed)
    merge("--rule", "fisher", "a", "b", "--out", "grown", "--keep-running")
    assert "d has no fisher statistics" in refused(capsys, "--into", "grown", "d")
    own = safetensors.numpy.load_file(path_of(models / "c", "fisher"))
    lacking = next(iter(own))
    for changed in (
        {name: each for name, each in own.items() if name != lacking},
        {**own, "lm_head.weight": own[lacking]},
    ):
        write_file(path_of(models / "c", "fisher"), changed)
        said = refused(capsys, "--into", "grown", "c")
        assert lacking in said or "lm_head.weight" in said
        assert "fisher statistics, and c" in said


@pytest.mark.parametrize(
    "settings", ["density=0.2,trim=model", "density=0.5,rescale=true,rescale_norm=l2,normalize=false"]
)
def test_what_is_trimmed_of_an_expert_does_not_hang_on_when_it_comes(settings: str, models: Path) -> None:
    chosen = [word for pair in settings.split(",") for word in ("--rule." + pair).split("=")]
    words = ["--rule", "ties", "--base", "base", *chosen]
    merge(*words, *"abc", "--out", "whole")
    merge(*words, *"ab", "--out", "grown", "--keep-running")
    merge("--into", "grown", "c")
    whole, grown = read(models / "whole"), read(models / "grown")
    assert all(whole[name].tobytes() == grown[name].tobytes() for name in whole)


@pytest.mark.parametrize("rule", ["magmax", "ties", "randmix"])
def test_the_state_does_not_grow(rule: str, models: Path) -> None:
    merge("--rule", rule, "--base", "base", "a", "--out", "grown", "--keep-running")
    sizes = []
    for name in "bcd":
        merge("--into", "grown", name)
        sizes.append((models / "grown" / "running.safetensors").stat().st_size)
    assert len(set(sizes)) == 1


def test_what_cannot_be_added_to_is_refused(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "--rule", "sce", "--base", "base", "a", "b", "--out", "out", "--keep-running")
    assert "must see all experts at once" in said
    assert "magmax" in said
    merge("--rule", "magmax", "--base", "base", "a", "--out", "bare")
    assert "--keep-running" in refused(capsys, "--into", "bare", "b")
    merge("--rule", "magmax", "--base", "base", "a", "--out", "grown", "--keep-running")
    before = {path.name: path.read_bytes() for path in (models / "grown").iterdir()}
    assert "is in grown already" in refused(capsys, "--into", "grown", "a")
    assert "is not the result of a merge" in refused(capsys, "--into", "a", "b")
    assert "goes on with the rule" in refused(capsys, "--into", "grown", "b", "--rule", "linear")
    base = read(models / "base")
    base["model.norm.weight"] = base["model.norm.weight"] + np.ones_like(base["model.norm.weight"])
    shutil.rmtree(models / "base")
    write(models / "base", base)
    assert "of base is not what it was" in refused(capsys, "--into", "grown", "b")
    assert {path.name: path.read_bytes() for path in (models / "grown").iterdir()} == before
    assert not (models / "grown.partial").exists()
