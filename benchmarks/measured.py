"""Make the table that `lifelong advise` ranks by from the results of a comparison.

lifelong compare recipes/methods.yaml --out runs/methods
python benchmarks/measured.py runs/methods/results.json

Rows of which the results have no more seeds stay as they are, so a new method needs `--methods naive,NEW` alone.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

import scipy.stats

from lifelong.experiments import advise, result

COMMAND = "lifelong compare recipes/methods.yaml"
WHAT = "split MNIST, 5 tasks of 2 classes, 2,000 samples a task, 5 epochs, MLP 256-256"


def main() -> None:
    runs = result.read_all(Path(sys.argv[1]))
    scenarios: dict[str, dict[str, Any]] = {}
    for run in runs:
        scenarios.setdefault(run["experiment"], {}).setdefault(run["label"], []).append(run)
    before = advise.measured()["scenarios"]
    table = {
        "command": COMMAND,
        "what": WHAT,
        "machine": runs[0]["platform"],
        "date": datetime.date.today().isoformat(),
        "network_megabytes": runs[0]["memory"]["model_bytes"] / 1e6,
        "scenarios": before | {name: _updated(before.get(name, {}), _rows(runs)) for name, runs in scenarios.items()},
    }
    path = Path(advise.__file__).with_name("measured.json")
    path.write_text(json.dumps(table, indent=1) + "\n")


def _updated(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of both, and of those that are in both the one with more seeds, or the new one."""
    return before | {name: row for name, row in found.items() if row["seeds"] >= before.get(name, row)["seeds"]}


def _rows(methods: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Accuracy over seeds, and time as the median over seeds of the ratio to fine-tuning with the same seed."""
    naive = {run["seed"]: _seconds(run) for run in methods["naive"]}
    return {name: _row(runs, naive) for name, runs in methods.items()}


def _row(runs: list[dict[str, Any]], naive: dict[int, float]) -> dict[str, Any]:
    reached = [run["average_accuracy"] for run in runs]
    half = scipy.stats.sem(reached) * scipy.stats.t.ppf(0.975, len(reached) - 1) if len(reached) > 1 else None
    return {
        "accuracy": round(mean(reached), 4),
        "interval": None if half is None else round(float(half), 4),
        "seeds": len(runs),
        "time": round(median(_seconds(run) / naive[run["seed"]] for run in runs), 2),
        "bytes": runs[0]["memory"]["method_bytes"],
        "stored_bytes": runs[0]["memory"]["stored_bytes"],
    }


def _seconds(run: dict[str, Any]) -> float:
    seconds: float = run["seconds"]["train"] + run["seconds"]["consolidate"]
    return seconds


if __name__ == "__main__":
    main()
