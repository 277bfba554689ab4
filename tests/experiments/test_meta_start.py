"""What meta-learned weights are worth as the start of a stream of few samples: `lifelong compare` shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from lifelong.cli import main
from lifelong.errors import InputError
from lifelong.experiments import build
from lifelong.experiments.meta_recipe import meta_recipe
from lifelong.experiments.meta_run import meta_events
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import Finished

NETWORK = {"name": "mlp", "hidden": [32]}


def meta_trained(out: Path, **changes: Any) -> None:
    """Meta-learn an initialisation, if not said otherwise from eight of the digits."""
    made = meta_recipe(
        {
            "algorithm": "protonet",
            "data": "digits",
            "ways": 2,
            "train_ways": 5,
            "shots": 3,
            "queries": 5,
            "train_classes": 8,
            "validation_classes": 0,
            "model": NETWORK,
            "iterations": 200,
            "lr": 3e-3,
            "tasks": 8,
            "test_tasks": 2,
            "formulation": "columns",
            "tasks_at_once": 8,
            "threads": 1,
            "device": "cpu",
            **changes,
        }
    )
    assert any(isinstance(event, Finished) for event in meta_events(made, out))


def test_a_comparison_shows_what_the_start_was_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta_trained(tmp_path / "meta")
    compared: dict[str, Any] = {
        "stream": "split",
        "data": "digits:0-5",
        "scenario": "task",
        "tasks": 2,
        "train_samples": 12,
        "model": NETWORK,
        "steps": 40,
        "batch_size": 12,
        "lr": 1e-2,
        "weights": str(tmp_path / "meta"),
        "seeds": 2,
        "threads": 1,
        "device": "cpu",
        "methods": {
            "from meta": {"method": "feature-extraction", "learn_first": False},
            "fresh": {"method": "feature-extraction", "learn_first": False, "weights": None},
        },
    }
    (tmp_path / "start.yaml").write_text(yaml.safe_dump(compared))
    assert main(["compare", str(tmp_path / "start.yaml"), "--out", str(tmp_path / "runs"), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)
    reached = {row: [run["average_accuracy"] for run in runs if run["label"] == row] for row in ("from meta", "fresh")}
    assert len(reached["from meta"]) == len(reached["fresh"]) == 2
    assert min(reached["from meta"]) > max(reached["fresh"]) + 0.1
    assert "from meta" in (tmp_path / "runs" / "report.html").read_text()


def test_a_stream_without_a_model_has_the_network_that_was_meta_trained(tmp_path: Path) -> None:
    meta_trained(tmp_path / "meta", model={}, iterations=1)
    told = json.loads((tmp_path / "meta" / "result.json").read_text())["recipe"]["model"]
    assert told == {"name": "mlp", "hidden": [40, 40]}
    assert json.loads((tmp_path / "meta" / "recipe.json").read_text())["model"] == {"name": None}
    made = recipe({"stream": "split", "weights": str(tmp_path / "meta")})
    started = build.learner(made, build.stream(made)).model
    assert torch.equal(started.trunk[3].weight, load_file(tmp_path / "meta" / "model.safetensors")["trunk.3.weight"])
    assert main(["meta", "test", str(tmp_path / "meta"), "--test-tasks", "2"]) == 0
    tested = json.loads((tmp_path / "meta" / "test.json").read_text())
    assert tested["recipe"]["model"] == told


def written(root: Path, paper: int) -> str:
    """Return a folder of pictures of four classes, whose ink differs from their `paper`."""
    for label in range(4):
        for number in range(8):
            path = root / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.new("L", (6, 6), paper)
            picture.putpixel((label, number % 6), 255 - paper)
            picture.save(path)
    return str(root)


def test_a_start_from_inverted_pictures_asks_whether_light_ones_are(tmp_path: Path) -> None:
    light, dark = (written(tmp_path / f"paper-{paper}", paper) for paper in (250, 5))
    few = {
        "train_ways": 2,
        "shots": 1,
        "queries": 1,
        "test_classes": 2,
        "train_classes": 2,
        "iterations": 1,
        "tasks": 1,
    }
    for data, start in ((light, "from light"), (dark, "from dark")):
        meta_trained(tmp_path / start, data=data, **few)
        found = json.loads((tmp_path / start / "result.json").read_text())
        assert found["inverted"] == (data == light)

    def inputs(data: str, start: str | None, invert: bool | None = None) -> torch.Tensor:
        weights = None if start is None else str(tmp_path / start)
        made = recipe({"stream": "split", "data": data, "tasks": 1, "weights": weights, "invert": invert})
        return build.stream(made).tasks[0].train.inputs

    plain = inputs(light, None)
    with pytest.raises(InputError, match="are mostly light: set invert to true"):
        inputs(light, "from light")
    assert torch.equal(inputs(light, "from light", False), plain)
    assert torch.equal(inputs(light, "from light", True), 255 - plain)
    assert torch.equal(inputs(light, "from dark"), plain)
    assert torch.equal(inputs(dark, "from light"), inputs(dark, None))


def test_only_images_are_inverted(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,b,label\n" + "".join(f"{row},{row % 3},{row % 2}\n" for row in range(20)))
    with pytest.raises(InputError, match=r"invert is for images, and .* has \(2,\)"):
        build.stream(recipe({"stream": "split", "data": str(table), "tasks": 1, "invert": True}))
