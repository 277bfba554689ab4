"""Searching for merges: unknowns in recipes, budget, resume, and the front."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merging.models import read, tensors, write

from lifelong.cli import main
from lifelong.errors import InputError, StateError
from lifelong.merging.search import Tried, filled, front, search, unknowns

NAME = "model.norm.weight"
RECIPE: dict[str, Any] = {
    "merge_method": "linear",
    "models": [
        {"model": "a", "parameters": {"weight": {"search": [0, 1]}}},
        {"model": "b", "parameters": {"weight": {"search": [0, 1]}}},
    ],
    "parameters": {"normalize": False},
    "dtype": "float32",
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        write(tmp_path / name, tensors(seed, dtype="F32"))
    return tmp_path


def distance(models: Path) -> Any:
    """An evaluation that is best at 0.7 a + 0.2 b."""
    target = 0.7 * read(models / "a")[NAME] + 0.2 * read(models / "b")[NAME]

    def evaluate(folder: Path) -> dict[str, float]:
        return {"near": -float(np.abs(read(folder)[NAME] - target).sum())}

    return evaluate


@pytest.mark.parametrize("sampler", ["tpe", "cma"])
def test_it_comes_near_to_the_best(sampler: str, models: Path) -> None:
    found = list(search(RECIPE, distance(models), models / "out", trials=40, sampler=sampler, folder=models))
    assert [each.number for each in found] == list(range(40))
    best = max(found, key=lambda each: each.scores["near"])
    first = max(found[:5], key=lambda each: each.scores["near"])
    assert best.scores["near"] > first.scores["near"]
    weights = list(best.values.values())
    np.testing.assert_allclose(weights, [0.7, 0.2], atol=0.15)
    assert len(list((models / "out").glob("best-*.yml"))) == 1
    kept = models / "out" / f"best-{best.number}"
    assert distance(models)(kept) == pytest.approx(best.scores)
    assert not (models / "out" / "trying").exists()


def test_the_seed_decides_and_a_budget_is_gone_on_with(models: Path) -> None:
    runs = [list(search(RECIPE, distance(models), models / name, trials=6, folder=models)) for name in ("x", "y")]
    assert runs[0] == runs[1]
    other = list(search(RECIPE, distance(models), models / "z", trials=6, seed=1, folder=models))
    assert other != runs[0]
    with pytest.raises(InputError, match="exists"):
        next(search(RECIPE, distance(models), models / "x", trials=8, folder=models))
    more = list(search(RECIPE, distance(models), models / "x", trials=8, resume=True, folder=models))
    assert [each.number for each in more] == [6, 7]
    assert len(json.loads((models / "x" / "trials.json").read_text())) == 8
    with pytest.raises(StateError, match="another recipe"):
        next(
            search(
                {**RECIPE, "dtype": "bfloat16"}, distance(models), models / "x", trials=9, resume=True, folder=models
            )
        )


def test_layers_and_methods_can_be_chosen(models: Path) -> None:
    recipe = {
        "merge_method": {"choose": ["linear", "passthrough"]},
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, {"search": [1, 3], "whole": True}]}]},
            {"sources": [{"model": {"choose": ["a", "b"]}, "layer_range": [3, 4]}]},
        ],
    }
    names = [each.name for each in unknowns(recipe)]
    assert names == ["merge_method", "slices.0.sources.0.layer_range.1", "slices.1.sources.0.model"]
    depths = set()

    def evaluate(folder: Path) -> dict[str, float]:
        depth = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
        depths.add(depth)
        return {"deep": depth, "shallow": -depth}

    found = list(search(recipe, evaluate, models / "out", trials=12, folder=models))
    assert depths == {2, 3, 4}
    assert {each.scores["deep"] for each in front(found)} == {2, 3, 4}
    assert len(list((models / "out").glob("best-*.yml"))) == 3


def test_the_front() -> None:
    points = [(1, 5), (2, 4), (2, 3), (0, 6), (2, 4), (1, 4)]
    tried = [Tried(index, {}, {"x": x, "y": y}) for index, (x, y) in enumerate(points)]
    assert [each.number for each in front(tried)] == [0, 1, 3]
    assert [each.number for each in front(tried, minimize=True)] == [2, 3, 5]


def test_values_are_put_in_their_places() -> None:
    recipe = {"a": [{"b": {"search": [0, 1]}}, 2]}
    assert filled(recipe, {("a", 0, "b"): 0.5}) == {"a": [{"b": 0.5}, 2]}
    assert recipe == {"a": [{"b": {"search": [0, 1]}}, 2]}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"search": [1, 0]}, "two ascending numbers"),
        ({"search": [0, 1], "log": True}, "above 0 with log"),
        ({"search": 3}, "two ascending numbers"),
        ({"search": [0, 1], "lgo": True}, "did you mean 'log'?"),
        ({"choose": []}, "must be a list"),
        (0.5, "nothing to search for"),
    ],
)
def test_unknowns_that_are_none_are_refused(value: Any, says: str, models: Path) -> None:
    recipe = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": value}}]}
    with pytest.raises(InputError) as caught:
        next(search(recipe, distance(models), models / "out", trials=1, folder=models))
    assert says in str(caught.value)
    assert not (models / "out").exists()


def test_the_command(models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(models)
    (models / "recipe.yml").write_text(json.dumps(RECIPE))
    (models / "size.py").write_text(
        "import os, sys\nprint('...')\nprint(os.path.getsize(sys.argv[1] + '/config.json'))\n"
    )
    words = ["merge", "search", "recipe.yml", "--out", "out", "--trials", "2"]
    assert main([*words, "--evaluate", f"{sys.executable} size.py {{}}", "--json"]) == 0
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["best"]) == 1
    assert "Search over merges: 2 trials" in (models / "out" / "report.html").read_text()
    assert shown.err.count("trial ") == 2
    for more, says in {
        ("--evaluate", "true {}"): "must end in a number",
        ("--evaluate", "no-such-command {}"): "cannot be run",
        ("--evaluate", "true"): "must say with {}",
        ("--evaluate", "echo nan {}"): "must end in a number",
        ("--evaluate", "true {}", "--seed", "x"): "seed",
        ("--evaluate", "true {}", "--sampler", "tpa"): "did you mean 'tpe'?",
    }.items():
        assert main([*words[:4], "other", *words[5:], *more]) == 2
        assert says in capsys.readouterr().err
        import shutil

        shutil.rmtree("other", ignore_errors=True)
