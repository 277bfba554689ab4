"""What meta-learned weights are worth as the start of a stream of few samples: `lifelong compare` shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lifelong.cli import main
from lifelong.experiments.meta_recipe import meta_recipe
from lifelong.experiments.meta_run import meta_events
from lifelong.experiments.run import Finished

NETWORK = {"name": "mlp", "hidden": [32]}


def meta_trained(out: Path) -> None:
    """Meta-learn an initialisation from eight of the digits."""
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
        }
    )
    assert any(isinstance(event, Finished) for event in meta_events(made, out))


def test_a_comparison_shows_what_the_start_was_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta_trained(tmp_path / "meta")
    recipe: dict[str, Any] = {
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
    (tmp_path / "start.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["compare", str(tmp_path / "start.yaml"), "--out", str(tmp_path / "runs"), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)
    reached = {row: [run["average_accuracy"] for run in runs if run["label"] == row] for row in ("from meta", "fresh")}
    assert len(reached["from meta"]) == len(reached["fresh"]) == 2
    assert min(reached["from meta"]) > max(reached["fresh"]) + 0.1
    assert "from meta" in (tmp_path / "runs" / "report.html").read_text()
