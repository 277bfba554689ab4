"""Runs that start from the weights of an earlier one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

import lifelong
from lifelong.cli import main
from lifelong.errors import InputError
from lifelong.experiments import build
from lifelong.experiments.plan import plan
from lifelong.experiments.recipe import differences, recipe, record
from lifelong.models.weights import load_trunk

QUICK: dict[str, Any] = {"tasks": 2, "train_samples": 64, "threads": 1, "device": "cpu", "batch_size": 16}
SMALL: dict[str, Any] = {**QUICK, "model_settings": {"hidden": [8]}}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the digits 0 to 4."""
    out = tmp_path_factory.mktemp("earlier") / "run"
    lifelong.run(**{**SMALL, "stream": "split", "data": "digits:0-4", "out": out})
    return out


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_trunk_is_the_files_and_the_head_is_new(earlier: Path) -> None:
    shared = {**SMALL, "stream": "split", "scenario": "task", "data": "digits:5-9", "seed": 3}
    made = recipe({**shared, "weights": str(earlier)})
    stream = build.stream(made)
    started, fresh = (build.learner(each, stream).model for each in (made, recipe(shared)))
    stored = load_file(earlier / "model.safetensors")
    assert torch.equal(started.trunk[1].weight, stored["trunk.1.weight"])
    assert not torch.equal(fresh.trunk[1].weight, stored["trunk.1.weight"])
    inputs = torch.rand(4, 8)
    assert torch.equal(started.head(inputs, 1), fresh.head(inputs, 1))


def test_without_a_model_the_network_is_that_of_the_folder(earlier: Path) -> None:
    started = recipe({"weights": {"name": str(earlier)}})
    assert (started.model, list(started.model_settings["hidden"])) == ("mlp", [8])
    assert recipe({"weights": str(earlier), "model": "convnet"}).model_settings == {}
    assert recipe({"weights": str(earlier), "model_settings": {"hidden": [9]}}).model_settings == {"hidden": [9]}
    file = str(earlier / "model.safetensors")  # nothing says what it is of
    assert recipe({"weights": file}).model_settings == {}
    mine = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    assert lifelong.run(**QUICK, model=mine, weights=str(earlier))["recipe"]["model"] == {"name": "mlp"}


def test_rows_of_a_comparison_have_one_network(earlier: Path) -> None:
    rows = {"started": {"method": "naive"}, "fresh": {"method": "naive", "weights": None}}
    shared = plan({"weights": str(earlier), "methods": rows})
    assert [list(each.recipe.model_settings["hidden"]) for each in shared] == [[8], [8]]
    own = plan({"methods": {"fresh": {"method": "naive"}, "started": {"method": "naive", "weights": str(earlier)}}})
    assert [each.recipe.model_settings for each in own] == [{}, {}]


def test_weights_that_do_not_fit_name_their_network(earlier: Path) -> None:
    with pytest.raises(InputError, match=r"run of model mlp \(hidden = \[8\]\) do not fit the network: they lack 3"):
        lifelong.run(**QUICK, model="mlp", weights=str(earlier))


@pytest.mark.parametrize("said", ["{", "[]", '{"recipe": 1}', '{"recipe": {"model": {"name": null}}}'])
def test_a_folder_whose_result_does_not_say_the_network_names_none(said: str, earlier: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((earlier / "model.safetensors").read_bytes())
    (tmp_path / "result.json").write_text(said)
    assert recipe({"weights": str(tmp_path)}).model_settings == {}


def test_a_folder_and_its_file_are_the_same_and_the_result_has_the_digest(earlier: Path, tmp_path: Path) -> None:
    file = earlier / "model.safetensors"
    results = [lifelong.run(**SMALL, weights=str(each), out=tmp_path / each.name) for each in (earlier, file)]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert [each["recipe"]["weights"]["sha256"] for each in results] == [digest(file)] * 2
    kept = json.loads((tmp_path / "run" / "result.json").read_text())["recipe"]
    assert recipe(kept) == recipe({**SMALL, "weights": str(earlier)})
    assert differences(kept, results[1]["recipe"]) == []


@pytest.mark.parametrize("restarts", ["separate", "joint", "gdumb"])
def test_who_goes_back_to_the_start_goes_back_to_these_weights(restarts: str, earlier: Path) -> None:
    settings = {**SMALL, "stream": "split", "scenario": "task", "lr": 1e-12, "method": restarts}
    result = lifelong.run(**settings, weights=str(earlier))
    fresh = lifelong.run(**settings)
    assert result["accuracy"] != fresh["accuracy"]
    assert result["accuracy"][0] == result["accuracy"][-1]  # nothing is learned at such a rate


def test_another_file_is_another_run(earlier: Path, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.safetensors", tmp_path / "out"
    mine.write_bytes((earlier / "model.safetensors").read_bytes())
    lifelong.run(**SMALL, weights=str(mine), out=out)
    lifelong.run(**SMALL, weights=str(earlier), out=out, resume=True)  # the same, wherever it lies
    other = lifelong.run(**SMALL, stream="split", out=tmp_path / "other")
    assert other["recipe"]["weights"] == {"name": None}
    mine.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    for weights in ({"weights": str(mine)}, {}):
        with pytest.raises(InputError, match=r"holds a run of another recipe \(weights = "):
            lifelong.run(**SMALL, **weights, out=out, resume=True)


def test_a_comparison_keeps_to_its_weights(earlier: Path, tmp_path: Path) -> None:
    rows = {"naive": {}, "fresh": {"method": "naive", "weights": None}}
    results = lifelong.compare(rows, **SMALL, weights=str(earlier), out=tmp_path)
    assert [each["recipe"]["weights"].get("sha256") for each in results] == [
        digest(earlier / "model.safetensors"),
        None,
    ]
    with pytest.raises(InputError, match="holds a run of another recipe"):
        lifelong.compare(rows, **SMALL, out=tmp_path)


def test_a_file_that_changes_before_the_run_is_refused(earlier: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes((earlier / "model.safetensors").read_bytes())
    made = recipe({**SMALL, "weights": str(file)})
    file.write_bytes(b"other")
    with pytest.raises(InputError, match=r"have the sha256 .*, and .* is asked for"):
        build.learner(made, build.stream(made))


def test_a_recipe_may_ask_for_a_digest(earlier: Path) -> None:
    file = earlier / "model.safetensors"
    asked = recipe({"weights": {"name": str(file), "sha256": digest(file)}})
    assert record(asked)["weights"] == {"name": str(file), "sha256": digest(file)}
    with pytest.raises(InputError, match="and 00 is asked for"):
        recipe({"weights": {"name": str(file), "sha256": "00"}})
    with pytest.raises(InputError, match="no setting 'md5'"):
        recipe({"weights": {"name": str(file), "md5": "00"}})


def test_a_classifier_of_ones_own_starts_from_weights_too(earlier: Path) -> None:
    mine = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    result = lifelong.run(**QUICK, model=mine, weights=str(earlier), method="feature-extraction", lr=1e-12)
    assert result["average_accuracy"] >= 0
    torch.testing.assert_close(mine[1].weight, load_file(earlier / "model.safetensors")["trunk.1.weight"])


@pytest.mark.parametrize(
    ("model", "weights", "says"),
    [
        (["--model.hidden", "9"], "{earlier}", "1.weight (real [8, 64], not real [9, 64])"),
        (["--model.hidden", "8,8"], "{earlier}", "they lack 3.weight, 3.bias"),
        (["--model.hidden", "8"], "{earlier}/result.json", "are no safetensors file"),
        (["--model.hidden", "8"], "{earlier}/..", "cannot be read (No such file or directory)"),
        (["--model.hidden", "8"], "nowhere.safetensors", "weights nowhere.safetensors cannot be read"),
    ],
)
def test_wrong_weights_get_one_line(
    model: list[str], weights: str, says: str, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", *model, "--weights", weights.format(earlier=earlier), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert "\n" not in error


def test_tune_takes_the_weights_of_the_command_line(earlier: Path, tmp_path: Path) -> None:
    other = lifelong.run(**SMALL, out=tmp_path / "other")
    (tmp_path / "recipe.yaml").write_text(
        f"{{model: {{name: mlp, hidden: [8]}}, tasks: 2, methods: {{naive: {{}}}}, weights: {tmp_path / 'other'}}}"
    )
    grid = ["--grid", "lr=0.1", "--weights", str(earlier), "--threads", "1"]
    assert main(["tune", str(tmp_path / "recipe.yaml"), "--row", "naive", *grid]) == 0
    assert other["recipe"]["weights"] == {"name": None}


class Shifted(nn.Module):
    """A weight of its own, in no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.layer = nn.Parameter(torch.randn(3)), nn.Linear(3, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs + self.shift)


def test_weights_in_no_layer_are_found_too() -> None:
    source, other = Shifted(), Shifted()
    load_trunk(other, save(dict(source.state_dict())), "memory")
    torch.testing.assert_close(other.state_dict(), source.state_dict(), rtol=0, atol=0)
