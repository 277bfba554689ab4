"""`lifelong merge` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from merging.models import read

from lifelong.cli import main


def test_a_recipe_and_options_say_the_same(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "recipe.yml").write_text(
        "merge_method: ties\nbase_model: base\nmodels:\n  - {model: a, parameters: {weight: 1}}\n"
        "  - {model: b, parameters: {weight: 0.5}}\nparameters: {density: 0.3, lambda: 0.7}\n"
    )
    assert main(["merge", "recipe.yml", "one"]) == 0
    assert "one: 15 tensors" in capsys.readouterr().out
    words = ["--rule", "ties", "--base", "base", "a", "b", "--out", "two", "--rule.density", "0.3"]
    assert main(["merge", *words, "--rule.lambda=0.7", "--rule.weight", "1,0.5", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["out"], shown["tensors"]) == ("two", 15)
    one, two = read(models / "one"), read(models / "two")
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give a recipe"),
        (["recipe.yml"], "give a recipe and a folder"),
        (["recipe.yml", "out", "--rule.density", "1"], "a recipe says these itself"),
        (["recipe.yml", "out"], "recipe.yml cannot be read"),
        (["--rule", "linear", "a", "b"], "--out is missing"),
        (["--rule", "linear", "--out", "out"], "give the models"),
        (["--rule", "liner", "a", "b", "--out", "out"], "did you mean 'linear'?"),
        (["--rule", "linear", "a", "c", "--out", "out"], "no model at c"),
        (["--rule", "linear", "a", "b", "--out", "a"], "a exists"),
        (["--rule", "linear", "a", "b", "--out", "out", "--rule.weigth", "1"], "did you mean 'weight'?"),
        (["--rule", "linear", "a", "b", "--out", "out", "--rule.weight", "1,2,3"], "3 numbers for 2 models"),
        (["--rule", "linear", "a", "b", "--out", "out", "--shard-size", "0GB"], "shard-size"),
        (["--rule", "linear", "a", "b", "--out", "out", "--threads", "0"], "threads"),
        (["--rule", "linear", "a", "b", "--out", "out", "--out-dtype", "float7"], "did you mean"),
        (["--rule", "linear", "a", "b", "--out", "out", "--device", "cudo"], "did you mean 'cuda'?"),
    ],
)
def test_wrong_input_gets_one_line(
    words: list[str], says: str, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(models.rglob("*"))
    assert main(["merge", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lifelong: error: ")
    assert shown.err.count("\n") == 1
    assert says in shown.err
    assert sorted(models.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no CUDA device")
def test_a_device_that_is_not_there_is_asked_for_by_rules_of_whole_matrices_alone(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", "--rule", "linear", "a", "b", "--out", "linear", "--device", "cuda"]) == 0
    words = ["merge", "--rule", "tsv", "--base", "base", "a", "b", "--out", "tsv"]
    assert main([*words, "--device", "cuda"]) == 2
    assert "no CUDA device: take cpu" in capsys.readouterr().err
    assert main([*words, "--device", "auto"]) == 0


def test_rules_are_listed_as_recipes_spell_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "rules", "--json"]) == 0
    rules = json.loads(capsys.readouterr().out)
    assert {"density", "lambda", "weight", "normalize"} <= {each["name"] for each in rules["ties"]["settings"]}
    assert rules["ties"]["needs_base"]
    assert not rules["linear"]["needs_base"]


def test_every_model_is_evaluated_after_the_merge(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "score.py").write_text(
        "import sys, json\n"
        "from lifelong.merging.checkpoint import open_model\n"
        "values = open_model(__import__('pathlib').Path(sys.argv[1])).values('model.norm.weight').read(0, 24)\n"
        "print(json.dumps({'first': abs(float(values[0])), 'rest': float(abs(values[1:]).sum())}))\n"
    )
    words = ["merge", "--rule", "linear", "--base", "base", "a", "b", "--evaluate", f"{sys.executable} score.py {{}}"]
    assert main([*words, "--out", "out", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown["scores"]) == ["base", "a", "b", "merged"]
    best = max(shown["scores"][name]["rest"] for name in "ab")
    for name, scores in shown["scores"].items():
        values = read(models / ("out" if name == "merged" else name))["model.norm.weight"].astype(float)
        assert scores["rest"] == pytest.approx(abs(values[1:]).sum())
        assert shown["normalised"][name]["rest"] == pytest.approx(scores["rest"] / best)
    assert main([*words, "--out", "again"]) == 0
    assert "of the best expert" in capsys.readouterr().out


def test_merging_imports_no_torch(models: Path) -> None:
    check = "import sys; from lifelong.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    words = ["merge", "--rule", "ties", "--base", "base", "a", "b", "--out", "out"]
    found = subprocess.run([sys.executable, "-c", check, *words], check=True, capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "False"


def test_a_merge_and_an_inspection_write_pages(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["merge", "--rule", "ties", "--base", "base", "a", "b", "--out", "made", "--report"]
    assert main([*words, "--evaluate", f"{sys.executable} -c print(0.5) {{}}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["page"] == "made/report.html"
    page = (models / "made" / "report.html").read_text()
    for text in ("<h1>Merge of a, b</h1>", "merge_method: ties", "made (merged)", "0.5 (100.0%)", "Fingerprint"):
        assert text in page
    assert (models / "made" / "report" / "kept-by-layer.png").stat().st_size > 1000
    # The models are not read again.
    (models / "base").rename(models / "elsewhere")
    assert main(["report", "made", "-o", "again.html"]) == 0
    moved = page.replace("folder report beside", "folder again beside").replace("report/", "again/")
    assert (models / "again.html").read_text() == moved
    (models / "elsewhere").rename(models / "base")
    capsys.readouterr()
    assert main(["report", "made", "-o", "again.md"]) == 2
    assert "ends in .html" in capsys.readouterr().err
    assert main(["merge", "inspect", "a", "b", "--base", "base", "--merged", "made", "-o", "page.html"]) == 0
    assert capsys.readouterr().out == "page.html\n"
    one, two = ((models / folder / "kept-by-layer.csv").read_text() for folder in ("made/report", "page"))
    assert one == two
    assert main(["merge", "inspect", "a", "b", "-o", "page"]) == 2
    assert "ends in .html" in capsys.readouterr().err
