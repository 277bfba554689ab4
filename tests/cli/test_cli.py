"""The command line as a user meets it: what it prints, what it refuses, and how."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lifelong.cli import COMMANDS, main, spin_briefly
from lifelong.experiments.plan import plan
from lifelong.training import checkpoint
from lifelong.yaml_file import read_yaml

QUICK = ["--tasks", "2", "--train-samples", "64", "--model.hidden", "8", "--threads", "1"]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.err.strip().splitlines() if ": after task" not in line]
    assert shown.out == ""
    assert len(lines) == 1, lines
    assert lines[0].startswith("lifelong: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["comprae"], "did you mean 'compare'?"),
        (["run", "--method", "ewcc"], "did you mean 'ewc'?"),
        (["run", "--method", "ewc", "--method.strenght", "1"], "did you mean 'strength'?"),
        (["run", "--method", "ewc", "--method.strength", "-1"], "strength = -1"),
        (["run", "--method", "ewc", "--method.strength", "much"], "strength = 'much'"),
        (["run", "--method", "ewc", "--method.fisher", "exact"], "'true', 'sampled', 'empirical' or 'batched'"),
        (["run", "--method", "ewc+lfw"], "did you mean 'lwf'?"),
        (["run", "--epochz", "3"], "did you mean '--epochs'?"),
        (["run", "--epochs", "0"], "epochs = '0'"),
        (["run", "--epochs", "many"], "epochs = 'many'"),
        (["run", "--stream", "premuted"], "'permuted', 'rotated', 'split', 'domains' or 'blurry'"),
        (["run", "--data", "digitz"], "did you mean 'digits'?"),
        (["run", "--scenario", "tasks"], "'task', 'domain' or 'class'"),
        (["run", "--model", "mpl"], "did you mean 'mlp'?"),
        (["run", "--model.hiden", "8"], "did you mean 'hidden'?"),
        (["run", "--model", "nowhere:net"], "cannot be imported"),
        (["run", "--optimizer", "adamm"], "did you mean 'adam'?"),
        (["run", "--optimizer.momentun", "0.9", "--optimizer", "sgd"], "did you mean 'momentum'?"),
        (["run", "--stream", "split", "--tasks", "11"], "11 tasks need at least 11 classes"),
        (["run", "--stream", "split", "--tasks", "3", "--scenario", "domain"], "use scenario task or class"),
        (["run", "--head", "multi", "--scenario", "domain"], "head multi needs scenario task"),
        (["run", "--early-stopping", "3"], "set validation"),
        (["run", "--validation", "0.0001"], "none to validate on"),
        (["run", "--device", "cuda:9"], "cuda:9"),
        (["run", "--checkpoint-every", "often"], "number of steps"),
        (["run", "--track", "tensorbord"], "did you mean 'tensorboard'?"),
        (["run", "--lr", "1e9", "--optimizer", "sgd"], "try a smaller lr"),
        (["run", "missing.yaml"], "cannot be read"),
        (["compare", "--methods", "naive,ewcc"], "did you mean 'ewc'?"),
        (["compare", "--seeds", "some"], "seeds = 'some'"),
        (["compare", "--workers", "0"], "workers = '0'"),
        (
            ["compare", "--methods", "naive,ewc", "--against", "ecw"],
            "unknown row 'ecw', did you mean 'ewc'? known are ewc, naive",
        ),
        (["compare", "--methods", "naive", "--methods.ewc.strength", "1"], "no row 'ewc'"),
    ],
)
def test_wrong_input_gets_one_line(
    argv: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = argv if argv[0] not in COMMANDS else [*argv, "--out", str(tmp_path / "out")]
    assert says in refused(capsys, *words)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- naive\n", "must be a mapping"),
        ("a: [\n", "is not YAML"),
        ("methods: {ewc: {strenght: 1}}\n", "did you mean 'strength'?"),
        ("methods: {naive: {expected: 3}}\n", "must map measures to [low, high]"),
        ("metods: {ewc: {}}\n", "no setting 'metods'"),
        ("experiments: 3\n", "experiments must be a mapping"),
        ("tasks: 3\nseeds: 1\ntasks: 4\n", "line 3: tasks stands twice"),
        ("methods:\n  er: {capacity: 20}\n  er: {capacity: 50}\n", "line 3: er stands twice"),
        ("method: er\ntasks: 2\n", "method = 'er' is of a single run"),
        ("methods: {}\n", "nothing to run"),
        ("seeds: [1, 0, 1]\n", "seeds = [1, 0, 1] has one of them twice"),
    ],
)
def test_a_wrong_recipe_gets_one_line(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert says in refused(capsys, "compare", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"))


def test_a_recipe_may_name_a_mapping_again(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("a: &a {b: [{c: 1}, {c: 2}]}\nd: *a\ne: {b: 1}\n")
    inner = {"b": [{"c": 1}, {"c": 2}]}
    assert read_yaml(tmp_path / "recipe.yaml") == {"a": inner, "d": inner, "e": {"b": 1}}


def test_a_run_that_was_refused_leaves_its_folder_to_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", *QUICK, "--stream", "split", "--method", "er", "--out", str(tmp_path / "out"), "--method.capacity"]
    assert "fewer than the 10 classes" in refused(capsys, *words, "5")
    assert not (tmp_path / "out").exists()
    assert main([*words, "50"]) == 0


def test_a_network_larger_than_memory_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 64 pixels to 1e13 units in float32 are 2.6 petabytes, more than an address space has.
    said = refused(capsys, "run", *QUICK, "--model.hidden", "10000000000000", "--out", str(tmp_path / "out"))
    assert "not enough memory" in said


def test_a_module_that_is_not_python_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "not_python.py").write_text("def net(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = refused(capsys, "run", *QUICK[:4], "--model", "not_python:net", "--out", str(tmp_path / "out"))
    assert "'not_python:net' cannot be imported: invalid syntax" in said


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["run", "--out", "my run"], "; what is done is kept, go on with: lifelong run --out 'my run' --resume"),
        (["compare", "--out", "x"], "; what is done is kept, go on with: lifelong compare --out x"),
        (["meta", "train", "--resume"], "; what is done is kept, go on with: lifelong meta train --resume"),
        (["meta", "test", "x"], ""),
        (["report", "x"], ""),
        (["tune"], ""),
    ],
)
def test_an_interrupt_says_how_to_go_on(
    argv: list[str], advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("lifelong.cli._dispatch", interrupted)
    assert main(argv) == 130
    assert capsys.readouterr().err == f"lifelong: interrupted{advice}\n"


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert "holds no run" in refused(capsys, "run", "--out", str(tmp_path))
    assert "holds no comparison" in refused(capsys, "compare", "--out", str(tmp_path))
    assert "is a file" in refused(capsys, "compare", "--out", str(tmp_path / "thesis.txt"))
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_of_another_recipe_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["run", *QUICK, "--out", out]) == 0
    before = (tmp_path / "out" / "result.json").read_bytes()
    capsys.readouterr()
    assert "epochs = 1 there, 2 here" in refused(capsys, "run", *QUICK, "--epochs", "2", "--out", out)
    assert "--resume" in refused(capsys, "run", *QUICK, "--out", out)
    assert (tmp_path / "out" / "result.json").read_bytes() == before


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    refused(capsys, "run", *QUICK, "--data", "digit", "--out", str(out))
    assert not out.exists()
    out.mkdir()
    refused(capsys, "run", *QUICK, "--optimizer.momentun", "0.9", "--out", str(out))
    refused(capsys, "meta", "train", "--ways", "1000", "--data", "digits", "--out", str(out))
    assert not out.exists() or not any(out.iterdir())


def test_a_full_disk_gets_one_line_and_leaves_nothing_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    said = refused(capsys, "run", *QUICK, "--out", str(tmp_path / "out"))
    assert f"No space left on device: {tmp_path / 'out'}" in said
    assert not [each for each in (tmp_path / "out").rglob("*") if each.is_file() and each.suffix != ".lock"]


def test_a_damaged_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["run", *QUICK, "--out", str(out)]) == 0
    capsys.readouterr()
    (out / "result.json").unlink()
    for weights in out.rglob("tensors.safetensors"):
        weights.write_bytes(weights.read_bytes()[:100])
    assert "no good checkpoint is left" in refused(capsys, "run", *QUICK, "--out", str(out), "--resume")


def test_json_is_one_document_with_the_promised_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *QUICK, "--method", "si", "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    fields = (
        "lifelong recipe stream scenario method settings seed tasks accuracy average_accuracy forgetting "
        "average_incremental_accuracy backward_transfer forward_transfer intransigence learning_accuracy seconds "
        "train_samples_per_second memory parameters device torch finished"
    )
    assert set(fields.split()) <= set(result)
    assert set(result["seconds"]) == {"train", "consolidate", "evaluate", "total"}
    assert set(result["memory"]) == {"model_bytes", "method_bytes", "stored_samples", "stored_bytes", "peak_rss_bytes"}
    assert len(result["accuracy"]) == 3
    assert result == json.loads((tmp_path / "out" / "result.json").read_text())
    assert main(["report", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_compare_does_not_run_finished_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", *QUICK, "--methods", "naive,ewc", "--seeds", "2", "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    first = json.loads(capsys.readouterr().out)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(made) == 4
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == made
    assert main([*words[:-3], "--workers", "2", "--out", str(tmp_path / "spread"), "--json"]) == 0
    spread = json.loads(capsys.readouterr().out)
    assert [each["accuracy"] for each in spread] == [each["accuracy"] for each in first]


def test_one_diverging_method_does_not_take_the_others_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("methods: {wild: {method: naive, optimizer: sgd, lr: 1.0e+38}, naive: {}}\n")
    words = [
        "compare",
        str(tmp_path / "recipe.yaml"),
        *QUICK,
        "--batch-size",
        "8",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert [each["label"] for each in json.loads(shown.out)] == ["naive"]
    assert "wild seed 0: the loss is" in shown.err


def test_what_finished_before_a_refused_run_can_be_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("methods: {naive: {}, packnet: {prune: 0}}\nscenario: task\n")
    out = tmp_path / "out"
    assert main(["compare", str(tmp_path / "recipe.yaml"), *QUICK, "--out", str(out)]) == 2
    assert "prune = 0 leaves 0 of" in capsys.readouterr().err.splitlines()[-1]
    assert main(["report", str(out), "--json"]) == 0
    assert [each["label"] for each in json.loads(capsys.readouterr().out)] == ["naive"]


def test_rows_that_are_run_one_by_one_make_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"

    def shown(*words: str) -> list[tuple[str, int]]:
        assert main(["compare", *QUICK, *words, "--out", str(out), "--json"]) == 0
        results = json.loads(capsys.readouterr().out)
        assert json.loads((out / "results.json").read_text()) == results
        return [(each["label"], each["seed"]) for each in results]

    assert shown("--methods", "ewc") == [("ewc", 0)]
    (out / "results.json").unlink()  # as if the first were still going on elsewhere
    assert shown("--methods", "si") == [("si", 0)]
    shutil.rmtree(out / "si")
    (out / "results.json").unlink()
    assert shown("--methods", "ewc") == [("ewc", 0)]
    assert shown("--methods", "joint,naive", "--seeds", "2") == [
        ("ewc", 0),
        *[(label, seed) for label in ("joint", "naive") for seed in (0, 1)],
    ]
    assert json.loads((out / "results.json").read_text())[0]["intransigence"] is not None
    assert shown("--methods", "joint", "--against", "naive") == [
        ("ewc", 0),
        ("joint", 1),
        ("naive", 0),
        ("naive", 1),
        ("joint", 0),
    ]
    assert "Against naive, points" in (out / "report.html").read_text()
    shutil.rmtree(out / "naive")
    assert shown("--methods", "l2", "--epochs", "2") == [("ewc", 0), ("joint", 1), ("joint", 0), ("l2", 0)]
    assert shown("--methods", "si", "--data", "digits:0-4") == [("si", 0)]


@pytest.mark.parametrize("name", ["page.pdf", "page", "page.json"])
def test_a_report_is_a_page_or_markdown(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "report", str(tmp_path), "--output", str(tmp_path / name))
    assert said.endswith("the page is FILE.html, or FILE.md for the tables of runs")
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(("text", "seeds"), [("3", [0, 1, 2]), ("0,2", [0, 2]), ("7,", [7]), ("1", [0])])
def test_seeds_are_a_number_or_a_list(text: str, seeds: list[int]) -> None:
    assert [run.recipe.seed for run in plan({"methods": ["naive"], "seeds": text})] == seeds


def test_options_override_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("method: {name: ewc, strength: 1}\nepochs: 7\n")
    words = ["run", str(tmp_path / "recipe.yaml"), *QUICK, "--epochs", "1", "--method.strength", "3"]
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["settings"]["strength"], result["recipe"]["epochs"]) == (3.0, 1)


def test_options_override_what_rows_and_experiments_of_a_recipe_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: {name: mlp, hidden: [9]}\n"
        "methods: {naive: {lr: 0.5}, ewc: {strength: 3}}\n"
        "experiments: {first: {epochs: 7, model: {name: mlp, hidden: [8]}}, second: {methods: {naive: {epochs: 9}}}}\n"
    )
    words = ["--epochs", "1", "--lr", "0.25", "--model.hidden", "7", "--json"]
    assert main(["compare", str(tmp_path / "recipe.yaml"), *QUICK, *words, "--out", str(tmp_path / "out")]) == 0
    results = json.loads(capsys.readouterr().out)
    assert len(results) == 4
    for each in results:
        recipe = each["recipe"]
        assert (recipe["epochs"], recipe["lr"], recipe["model"]) == (1, 0.25, {"name": "mlp", "hidden": 7})
        assert each["method"] != "ewc" or each["settings"]["strength"] == 3


def test_a_row_of_one_experiment_is_run_there_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "methods: {naive: {}}\nepochs: 1\nstream: split\ndata: digits\n"
        "experiments: {first: {scenario: task, methods: {separate: {}}}, second: {scenario: domain}}\n"
    )
    for methods, expected in {"separate": ["first"], "separate,naive": ["first", "first", "second"]}.items():
        words = ["--methods", methods, "--out", str(tmp_path / methods), "--json"]
        assert main(["compare", str(tmp_path / "recipe.yaml"), *QUICK, *words]) == 0
        assert [each["experiment"] for each in json.loads(capsys.readouterr().out)] == expected


def test_a_chain_may_be_written_with_spaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*QUICK, "--method.ewc.strength", "3", "--json"]
    assert main(["run", *words, "--method", "er + ewc", "--out", str(tmp_path / "run")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["method"], result["settings"]["ewc"]["strength"]) == ("er+ewc", 3)
    assert main(["compare", *QUICK, "--methods", "er + ewc", "--out", str(tmp_path / "both"), "--json"]) == 0
    assert [each["method"] for each in json.loads(capsys.readouterr().out)] == ["er+ewc"]


def test_words_that_yaml_takes_for_truth_values_stay_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("method: {name: ewc, fisher: true}\n")
    assert main(["run", str(tmp_path / "recipe.yaml"), *QUICK, "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["fisher"] == "true"


def test_tune_picks_the_best_on_validation_samples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *QUICK, "--epochs", "5", "--grid", "lr=1e-7,1e-2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"]["settings"] == {"lr": 0.01}
    assert len(found["trials"]) == 2


@pytest.mark.parametrize(("grid", "says"), [("lr=1e-2,-1", "lr = -1"), ("method.capacity=20,abc", "capacity = 'abc'")])
def test_tune_refuses_before_it_runs_anything(grid: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *QUICK, "--method", "er", "--grid", grid]) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert len(shown.err.splitlines()) == 1


def test_tune_holds_samples_out_for_a_row_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("methods: {naive: {}, ewc: {strength: 1}}\n")
    words = ["tune", str(tmp_path / "recipe.yaml"), "--row", "ewc", *QUICK, "--grid", "method.strength=1,10", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert [trial["settings"] for trial in found["trials"]] == [{"method.strength": 1}, {"method.strength": 10}]
    words[words.index("ewc")] = "ew"
    assert "unknown row 'ew', did you mean 'ewc'? known are ewc, naive" in refused(capsys, *words)


def test_list_tells_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "ewc", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["ewc"]
    assert main(["list", "methods", "ewc"]) == 0
    shown = capsys.readouterr().out
    assert "1612.00796" in shown
    assert "online = False" in shown
    assert "packnet" not in shown


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_names_settings_and_defaults(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: lifelong" in shown
    if command in ("run", "compare", "tune"):
        assert "--batch-size" in shown
        assert "(default 128)" in shown


def test_help_is_quick() -> None:
    begun = time.monotonic()
    shown = subprocess.run([sys.executable, "-m", "lifelong", "--help"], capture_output=True, check=True)
    # Half a second on a quiet machine; the margin is for a loaded one, and an import of torch alone takes longer.
    assert time.monotonic() - begun < 1.5
    assert b"compare" in shown.stdout


def test_list_tells_of_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ewc"]["paper"] == "1612.00796"
    assert {"name": "online", "default": False}.items() <= found["ewc"]["settings"][3].items()


def test_list_says_whom_a_method_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    fields = "family paper scenarios needs_task_id keeps_samples grows single_pass boundaries boundaries_unless"
    assert all(set(fields.split()) < set(entry) for entry in found.values())
    assert [name for name, entry in found.items() if not entry["boundaries"]][:2] == ["naive", "joint"]
    assert found["ranpac"]["boundaries_unless"] == {"learn_first": False}
    assert main(["list", "methods"]) == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines() if line}
    assert lines["joint"].split() == ["joint", "baseline", "all", "no", "yes", "yes", "no", "yes", "no", "-"]
    assert lines["slda"].split() == [
        "slda",
        "streaming",
        "all",
        "no",
        "no",
        "no",
        "yes",
        "no",
        "optional",
        "1909.01520",
    ]
    assert lines["ewc"].split() == ["ewc", "importance", "all", "no", "no", "no", "no", "yes", "needed", "1612.00796"]
    assert all(len(lines[name]) <= 100 for name in found)
    assert "without task boundaries: online = True" in shown
    assert "learn_first = True: the network learns the first task" in shown


def test_tensorboard_gets_the_accuracies(tmp_path: Path) -> None:
    assert main(["run", *QUICK, "--out", str(tmp_path / "out"), "--track", "tensorboard"]) == 0
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "--model.hidden", "0"], "hidden = (0,) must be numbers of units"),
        (["run", "--model.hidden", "8,-3"], "hidden = (8, -3) must be numbers of units"),
        (["run", "--model.hidden", "a,b"], "hidden"),
        (["run", "--model", "convnet", "--model.channels", "4,0"], "channels = (4, 0)"),
        (["run", "--model", ":"], "cannot be imported"),
        (["run", "--model", "..:net"], "cannot be imported"),
        (["run", "--model", "json:dumps"], "json:dumps"),
        (["run", "--lr", "nan"], "lr"),
        (["run", "--lr", "inf"], "lr"),
        (["run", "--lr", "0"], "greater than 0"),
        (["run", "--batch-size", "1.5"], "batch_size"),
        (["run", "--seed", "-1"], "seed"),
        (["run", "--seed", "9" * 22], "seed"),
        (["run", "--threads", "100000"], "less than or equal to 1024"),
        (["run", "--method", "ewc", "--method.strength", "inf"], "method.strength = inf should be a finite number"),
        (["run", "--method", "ewc", "--method.strength", "1e300"], "method.strength = 1e+300 should be a finite"),
        (["run", "--optimizer.weight_decay", "nan"], "optimizer.weight_decay = nan should be a finite number"),
        (["run", "--warmup", "1"], "warmup"),
        (["run", "--dropout", "0.5"], "unknown option '--dropout'"),
        (["run", "--model.dropout", "1"], "dropout"),
        (["run", "--method", ""], "unknown method"),
        (["run", "--method", "naive+"], "unknown method"),
        (["run", "--method.strength"], "needs a value"),
        (["run", "--epochs"], "expected one argument"),
        (["run", "one.yaml", "two.yaml"], "unknown argument 'two.yaml'"),
        (["run", "--checkpoint-every", "³"], "number of steps"),
        (["run", "--evaluate-on", "validation"], "set validation"),
        (["run", "--head", "growing", "--stream", "split", "--scenario", "task"], "head growing needs scenario class"),
        (["run", "--stream", "rotated", "--angles", "1,2"], "2 angles for 5 tasks"),
        (["run", "--stream", "split", "--classes-per-task", "3,3"], "classes_per_task [3, 3]"),
        (["run", "--optimizer", "sgd", "--optimizer.momentum", "-1"], "Invalid momentum"),
        (["run", "--precision", "fp8"], "'float32' or 'bf16'"),
        (["run", "--schedule", "cosin"], "'constant', 'linear' or 'cosine'"),
        (["compare", "--workers", "²"], "workers = '²'"),
        (["compare", "--seeds", "²"], "seeds = '²'"),
        (["compare", "--seeds", "0"], "seeds"),
        (["compare", "--methods", ","], "names no method"),
        (["compare", "--experiments", "first"], "no experiment 'first'"),
        (["compare", "--methods", "ewc", "--method.strength", "3"], "say methods.ROW.strength"),
        (["compare", "--track", "tensorbord"], "did you mean 'tensorboard'?"),
        (
            ["run", "--stream", "split", "--angles", "0,45"],
            "angles is a setting of stream rotated, and stream is split",
        ),
        (["run", "--shuffle-classes"], "shuffle_classes is a setting of stream split and blurry"),
        (["run", "--unseen", "digits"], "unseen is a setting of stream domains"),
        (["run", "--crop", "8"], "crop = 8 shifts images of 8 x 8 pixels out of sight: take 7 at most"),
        (["run", "--method", "der+si", "--method.strength", "3"], "under the names of its parts: si.strength"),
        (["run", "--method", "er+ewc", "--method.x", "3"], "none has 'x', and theirs are said like er."),
        (["compare", "--methods", "naive", "--device", "cuda:7"], "device 'cuda:7' is not to be had here"),
        (["run", "--stream", "blurry", "--blur", "1.5"], "blur = '1.5'"),
        (["run", "--stream", "blurry", "--tasks", "1"], "needs at least 2, not tasks = 1"),
        (["run", "--stream", "blurry", "--scenario", "task"], "stream blurry cannot do scenario task"),
        (["run", "--stream", "blurry", "--head", "growing"], "head growing grows task by task"),
        (["run", "--stream", "blurry", "--method", "ewc"], "stream blurry has no such places: take naive, joint"),
        (["run", "--stream", "blurry", "--method", "naive+ewc"], "method ewc needs to know where a task ends"),
        (["run", "--stream", "blurry", "--method", "slda"], "set its learn_first = False, or take naive"),
        (["run", "--stream", "blurry", "--method", "mas"], "set its online = True, or take naive"),
    ],
)
def test_more_wrong_input_gets_one_line(
    argv: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, *argv, "--out", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run"], "--out"),
        (["run", "--resum", "--out", "x"], "did you mean '--resume'?"),
        (["list", "method"], "did you mean 'methods'?"),
        (["list", "methods", "ewcc"], "unknown method 'ewcc', did you mean 'ewc'?"),
        (["list", "data", "ministo"], "unknown data 'ministo', did you mean 'mnist'?"),
        (["report"], "folder"),
        (["report", "no/such/folder"], "holds neither"),
        (["tune"], "nothing to search"),
        (["tune", "--grid", "lr"], "SETTING=VALUE"),
        (["tune", "--grid", "lrr=1,2"], "did you mean 'lr'?"),
        (["tune", "--grid", "method.strenght=1,2", "--method", "ewc"], "did you mean 'strength'?"),
        (["tune", "--grid", "lr=1", "--seeds", "³"], "seeds = '³'"),
    ],
)
def test_wrong_input_of_the_other_commands_gets_one_line(
    argv: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *argv)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("methods: {ewc: 3}\n", "ewc must be a mapping of settings"),
        ("methods: 3\n", "methods = 3"),
        ("experiments: {first: 3}\n", "first must be a mapping of settings"),
        ("methods: {ewc: {1: 2}}\n", "no setting 1"),
        ("1: 2\n", "no setting 1"),
        ("methods: {../outside: {method: naive}}\n", "names a folder"),
        ("methods: {'': {method: naive}}\n", "names a folder"),
        ("experiments: {..: {methods: [naive]}}\n", "names a folder"),
        ("seeds: [0, x]\n", "seeds = [0, 'x']"),
        ("seeds: true\n", "seeds = True"),
        ("model: 3\n", "model = 3"),
        ("data: [digits]\n", "data = ['digits']"),
        ("optimizer: {name: sgd, momentun: 0.9}\n", "did you mean 'momentum'?"),
        ("", "must be a mapping"),
    ],
)
def test_more_wrong_recipes_get_one_line(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    assert says in refused(capsys, "compare", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "outside").exists()


def test_a_recipe_that_is_no_text_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    out = ("--out", str(tmp_path / "out"))
    assert "is not UTF-8 text" in refused(capsys, "run", str(tmp_path / "recipe.yaml"), *out)
    assert "did you mean 'recipe.yaml'?" in refused(capsys, "run", str(tmp_path / "recipee.yaml"), *out)
    assert "cannot be read" in refused(capsys, "run", str(tmp_path), *out)


def test_a_refused_recipe_may_be_put_right_in_the_same_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (["--optimizer", "adamm"], ["--data", "digitz"], ["--head", "multi"], ["--method", "ewcc"]):
        for command in ("run", "compare"):
            if command == "run" or "--method" not in wrong:
                refused(capsys, command, *QUICK, *wrong, "--out", str(tmp_path / command))
    for command in ("run", "compare"):
        assert main([command, *QUICK, "--out", str(tmp_path / command)]) == 0
        assert list((tmp_path / command).rglob("result.json"))


def test_out_is_a_file_or_below_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("precious")
    for command in ("run", "compare"):
        for out in ("file", "file/below"):
            assert "file" in refused(capsys, command, *QUICK, "--out", str(tmp_path / out))
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("content", ["[]", "3", "not json"])
def test_a_recipe_of_the_folder_that_is_damaged(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "run" / "recipe.json", tmp_path / "all" / "naive" / "seed-0" / "recipe.json"):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    assert "is not readable" in refused(capsys, "run", *QUICK, "--out", str(tmp_path / "run"))
    assert "is not readable" in refused(capsys, "compare", *QUICK, "--out", str(tmp_path / "all"))


@pytest.mark.parametrize("content", ["", "3", "{}", "[]", "[3]", "[{}]"])
def test_results_that_are_damaged(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text(content)
    assert "result.json" in refused(capsys, "report", str(tmp_path))
    (tmp_path / "results.json").write_text(content)
    assert "results.json" in refused(capsys, "report", str(tmp_path))
    (tmp_path / "report.json").write_text(content)
    assert "report.json" in refused(capsys, "report", str(tmp_path))


def test_a_disk_that_fills_up_in_the_middle_keeps_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 5:  # the recipe, the first task's checkpoint, and a part of the second's
            raise OSError(errno.ENOSPC, "No space left on device")

    assert main(["run", *QUICK, "--out", str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.os, "fsync", full)
        said = refused(capsys, "run", *QUICK, "--out", str(tmp_path / "out"))
    assert f"No space left on device: {tmp_path / 'out'}" in said
    assert [each.name for each in (tmp_path / "out" / "checkpoints").iterdir()] == ["0000000002"]
    assert main(["run", *QUICK, "--out", str(tmp_path / "out"), "--resume"]) == 0
    weights = [(tmp_path / each / "model.safetensors").read_bytes() for each in ("whole", "out")]
    assert weights[0] == weights[1]


def test_an_error_in_a_worker_gets_one_line(tmp_path: Path) -> None:
    words = ["compare", *QUICK, "--methods", "naive,ewc", "--head", "multi", "--workers", "2"]
    ended = subprocess.run(
        [sys.executable, "-m", "lifelong", *words, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "head multi needs scenario task" in ended.stderr


def test_list_is_one_document_of_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"streams", "methods", "rules", "models", "data", "optimizers", "meta"}
    assert {"permuted", "rotated", "split", "domains", "blurry"} == set(found["streams"])
    assert [name for name, entry in found["streams"].items() if not entry["boundaries"]] == ["blurry"]
    assert {"mlp", "convnet"} <= set(found["models"])
    assert "lbfgs" not in found["optimizers"]
    assert main(["list"]) == 0
    assert "hidden = (256, 256): units of each hidden layer" in capsys.readouterr().out


def test_report_draws_the_page_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["compare", *QUICK, "--methods", "naive,ewc", "--out", str(out)]) == 0
    first = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    capsys.readouterr()
    assert main(["report", str(out), "--json"]) == 0
    assert [each["method"] for each in json.loads(capsys.readouterr().out)] == ["naive", "ewc"]
    assert len((out / "report.html").read_bytes()) == len(first)
    assert main(["report", str(out), "-o", str(tmp_path / "other.html")]) == 0
    assert b"naive" in (tmp_path / "other.html").read_bytes()


def test_tune_never_looks_at_test_samples(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lifelong.experiments import run

    seen = []
    accuracy = run.accuracy

    def watched(learner: Any, method: Any, task: Any, split: Any) -> float:
        seen.append(split is task.validation)
        return accuracy(learner, method, task, split)

    monkeypatch.setattr(run, "accuracy", watched)
    words = ["tune", *QUICK, "--method", "ewc", "--grid", "lr=1e-3,1e-2", "--grid", "method.strength=1,1e3", "--json"]
    assert main([*words, "--seeds", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert seen
    assert all(seen)
    assert [trial["settings"] for trial in found["trials"]] == [
        {"lr": lr, "method.strength": strength} for lr in (1e-3, 1e-2) for strength in (1, 1e3)
    ]
    assert found["best"]["average_accuracy"] == max(trial["average_accuracy"] for trial in found["trials"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_waiting_threads_spin_briefly_unless_told(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that what the test sets is taken back
        monkeypatch.delenv(name)
    for name, each in given.items():
        monkeypatch.setenv(name, each)
    spin_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_the_command_line_is_there_before_pytorch() -> None:
    """What PyTorch's threads read from the environment is set before it starts."""
    program = "import sys, lifelong.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
