"""What a run leaves behind: the numbers that reports read, and nothing that needs the model's code."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lifelong
from lifelong.errors import StateError
from lifelong.training import metrics


@dataclass
class Seconds:
    """Wall time of a run by what it was spent on; saving checkpoints is not counted."""

    train: float = 0.0
    consolidate: float = 0.0
    evaluate: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.train + self.consolidate + self.evaluate


@dataclass
class Tally:
    """What a run counts as it goes; a checkpoint holds it, so a resumed run reports the whole.

    Args:
        accuracy: rows of the accuracy matrix so far, row 0 before any learning.
        expert_accuracy: on each task so far, of the network as it was trained on it, for methods that merge.
        unseen_accuracy: on tasks that are never learned, a row before the first task and one after the last.
        seconds: wall time.
        train_samples: samples stepped on, `test_samples` samples answered for.
        old_samples: most training samples of earlier tasks that a task read.
        peak_rss_bytes: most memory that the process held.
    """

    accuracy: list[list[float]] = dataclasses.field(default_factory=list)
    expert_accuracy: list[float] = dataclasses.field(default_factory=list)
    unseen_accuracy: list[list[float]] = dataclasses.field(default_factory=list)
    seconds: Seconds = dataclasses.field(default_factory=Seconds)
    train_samples: int = 0
    test_samples: int = 0
    old_samples: int = 0
    peak_rss_bytes: int = 0


def measures(accuracy: Sequence[Sequence[float]], weights: Sequence[float] | None) -> dict[str, float | None]:
    """Return every measure of `metrics` for an accuracy matrix `[tasks + 1, tasks]`.

    Args:
        weights: test samples a task, for class-incremental streams, whose average is over all classes seen; or None.
    """
    matrix = np.asarray(accuracy, dtype=np.float64)
    return {
        "average_accuracy": metrics.average_accuracy(matrix, weights),
        "average_incremental_accuracy": metrics.average_incremental_accuracy(matrix, weights),
        "forgetting": metrics.forgetting(matrix),
        "backward_transfer": metrics.backward_transfer(matrix),
        "forward_transfer": metrics.forward_transfer(matrix),
        "intransigence": None,
        "learning_accuracy": metrics.learning_accuracy(matrix),
        "new_accuracy": metrics.learning_accuracy(matrix),
        "old_accuracy": metrics.old_accuracy(matrix),
    }


def of_merging(tally: Tally, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told of a method that merges: its own measures, and how near it comes to its experts."""
    return {
        "expert_accuracy": tally.expert_accuracy,
        "normalised_accuracy": metrics.normalised_accuracy(np.asarray(tally.accuracy), tally.expert_accuracy),
        **found,
    }


def of_unseen(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return what is told of tasks that are never learned.

    Mean accuracy at the end, what that is above the one before learning (forward transfer), and each before and after.
    """
    if not names:
        return {"unseen_accuracy": None, "unseen_transfer": None, "unseen": None}
    told = {"tasks": list(names), "before": rows[0], "after": rows[-1]}
    end = float(np.mean(rows[-1]))
    return {"unseen_accuracy": end, "unseen_transfer": end - float(np.mean(rows[0])), "unseen": told}


def surroundings() -> dict[str, Any]:
    """Return the versions and the machine that a result was made with."""
    import torch

    return {
        "lifelong": lifelong.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {processor()}",
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """Return the name of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def fill_intransigence(results: Sequence[dict[str, Any]]) -> None:
    """Give each result its intransigence where a joint run of the same experiment and seed stands beside it."""
    joint = {(r["experiment"], r["seed"]): r for r in results if r["method"] == "joint"}
    for result in results:
        reference = joint.get((result["experiment"], result["seed"]))
        if reference is not None and result["method"] != "joint":
            result["intransigence"] = metrics.intransigence(
                np.asarray(result["accuracy"]), np.asarray(reference["accuracy"])
            )


def read(path: Path) -> dict[str, Any]:
    """Return the result in the file `path`.

    Raises:
        StateError: not readable, or not a result.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StateError(f"{path} is not a readable result: {error}; remove it to run again") from error
    if not isinstance(result, dict) or "accuracy" not in result:
        raise StateError(f"{path} is not the result of a run; remove it to run again")
    return result


def read_all(path: Path) -> list[dict[str, Any]]:
    """Return the results in the file `path`, a `results.json`.

    Raises:
        StateError: not readable, or not a list of results.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StateError(f"{path} is not readable: {error}; run the comparison again to gather it anew") from error
    if not isinstance(found, list) or not found or not all(isinstance(r, dict) and "accuracy" in r for r in found):
        raise StateError(f"{path} holds no results")
    return found
