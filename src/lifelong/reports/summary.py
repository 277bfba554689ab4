"""From results, one a run, to rows, one a method: means over seeds and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lifelong.errors import InputError, unknown

Result = Mapping[str, Any]

_NEEDED = ("method", "seed", "stream", "data", "scenario", "tasks", "accuracy", "average_accuracy", "recipe")


@dataclass(frozen=True)
class Estimate:
    """A mean over `seeds` runs, and half the width of its 95 % confidence interval, or None for one run."""

    mean: float
    half_width: float | None
    seeds: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half_width is None else self.mean + self.half_width


@dataclass(frozen=True)
class Row:
    """One method of an experiment: its results, one a seed."""

    label: str
    results: tuple[Result, ...]

    def estimate(self, measure: str) -> Estimate | None:
        """Return the estimate of `measure`, such as `memory.method_bytes`, or None without a value."""
        return estimate(_value(result, measure) for result in self.results)

    def difference(self, measure: str, other: Row) -> Estimate | None:
        """Return the estimate of `measure` less that of `other` with the same seed, or None without a shared seed.

        What a seed does to both cancels out, so the interval is that of the paired t-test.
        """
        theirs = {result["seed"]: _value(result, measure) for result in other.results}
        pairs = [(_value(result, measure), theirs.get(result["seed"])) for result in self.results]
        return estimate(ours - its for ours, its in pairs if ours is not None and its is not None)

    def flag(self, name: str) -> bool | None:
        """Return whether any run says yes to `name`, such as `needs_task_id`, or None where none says."""
        said = [bool(result[name]) for result in self.results if result.get(name) is not None]
        return any(said) if said else None

    @property
    def expected(self) -> dict[str, tuple[float, float]]:
        """The range that the recipe gives for the mean over seeds, by measure."""
        ranges = self.results[0].get("expected") or {}
        return {measure: (float(low), float(high)) for measure, (low, high) in ranges.items()}

    @property
    def misses(self) -> list[str]:
        """One phrase for each mean that is outside its expected range."""
        said = []
        for measure, (low, high) in self.expected.items():
            found = self.estimate(measure)
            if found is None or not low <= found.mean <= high:
                value = "missing" if found is None else f"{found.mean:.4g}"
                said.append(f"{measure} is {value}, expected {low:g} to {high:g}")
        return said

    def accuracy(self) -> list[list[Estimate]]:
        """Return the accuracy matrix, rows from before learning to after the last task, over seeds."""
        matrices = [result["accuracy"] for result in self.results]
        return [
            [_sure(cells) for cells in zip(*rows, strict=True)]  # cells of one task, over seeds
            for rows in zip(*matrices, strict=True)
        ]

    def average_after(self) -> list[Estimate]:
        """Return, after each task, the mean accuracy on the tasks seen by then, over seeds."""
        tasks = len(self.results[0]["tasks"])
        return [
            _sure(statistics.fmean(result["accuracy"][after][:after]) for result in self.results)
            for after in range(1, tasks + 1)
        ]


@dataclass(frozen=True)
class Section:
    """What was compared on one stream: an experiment's rows, in the order in which the results name them.

    Args:
        experiment: its name, or None.
        rows: one a method.
        reference: the row that the others are compared with, seed by seed, or None.
    """

    experiment: str | None
    rows: tuple[Row, ...]
    reference: Row | None = None

    @property
    def title(self) -> str:
        """The experiment's name, or else what the stream was."""
        first = self.rows[0].results[0]
        return self.experiment or f"{first['stream']} {first['data']}, {first['scenario']}-incremental"

    @property
    def note(self) -> str:
        """What accuracy stands for in tasks that predict a number; empty where there are none."""
        first = self.rows[0].results[0]
        numbers = [name for name, score in zip(first["tasks"], first.get("scores", ()), strict=False) if score == "r2"]
        return f"Accuracy is R² in {', '.join(numbers)}, 0 where it is below." if numbers else ""

    @property
    def labels(self) -> list[str]:
        """Of its rows."""
        return [row.label for row in self.rows]

    @property
    def seeds(self) -> list[int]:
        """Every seed that any row has finished."""
        return sorted({result["seed"] for row in self.rows for result in row.results})

    @property
    def naive(self) -> Row | None:
        """The row that others' training time is compared with: plain fine-tuning."""
        return next((row for row in self.rows if "naive" in (row.label, row.results[0]["method"])), None)


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """Return the mean of `values` with its 95 % interval by Student's t, or None when there are none.

    Args:
        values: one a seed; None for a run that has no such value.
    """
    # scipy.special rather than scipy.stats, which takes a second to import.
    from scipy.special import stdtrit

    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    count = len(known)
    if count == 1:
        return Estimate(known[0], None, 1)
    error = statistics.stdev(known) / math.sqrt(count)
    return Estimate(statistics.fmean(known), float(stdtrit(count - 1, 0.975)) * error, count)


def sections(results: Sequence[Result], against: str | None = None) -> list[Section]:
    """Return the experiments in `results`, each with a row a label.

    Args:
        results: dictionaries as in `result.json`.
        against: label of the row that the others are compared with, where an experiment has it.

    Raises:
        InputError: nothing to report, a result that lacks a field, results that cannot stand in one row, or no row
            `against`.
    """
    if not results:
        raise InputError("no results to report: no run has finished yet")
    found: dict[str | None, dict[str, list[Result]]] = {}
    for number, result in enumerate(results, 1):
        missing = [field for field in _NEEDED if field not in result]
        if missing:
            raise InputError(f"result {number} has no {missing[0]!r}: it is not the result of a run")
        label = str(result.get("label") or result["method"])
        row = found.setdefault(result.get("experiment"), {}).setdefault(label, [])
        if any(other["seed"] == result["seed"] for other in row):
            raise InputError(f"two results of {label!r} have seed {result['seed']}: give them different labels")
        if row and len(row[0]["tasks"]) != len(result["tasks"]):
            raise InputError(f"results of {label!r} differ in their number of tasks: give them different labels")
        row.append(result)
    labels = {label for rows in found.values() for label in rows}
    if against is not None and against not in labels:
        raise unknown("row", against, labels)
    parts = []
    for experiment, by_label in found.items():
        rows = {label: Row(label, tuple(row)) for label, row in by_label.items()}
        parts.append(Section(experiment, tuple(rows.values()), rows.get(against) if against is not None else None))
    return parts


def measures(section: Section) -> list[dict[str, Any]]:
    """Return all that was measured as a tidy table: experiment, label, measure, mean, low, high, seeds."""
    return [
        {"experiment": section.experiment, "label": row.label, "measure": measure, **as_columns(found)}
        for row in section.rows
        for measure in _measured(row.results)
        if (found := row.estimate(measure)) is not None
    ]


def as_columns(found: Estimate) -> dict[str, Any]:
    """Return an estimate as columns of a tidy table, to six digits, which keeps the page small."""
    low, high = (None if end is None else float(f"{end:.6g}") for end in (found.low, found.high))
    return {"mean": float(f"{found.mean:.6g}"), "low": low, "high": high, "seeds": found.seeds}


def _measured(results: Sequence[Result]) -> list[str]:
    found = []
    for result in results:
        parts = [("", result), ("seconds.", result.get("seconds", {})), ("memory.", result.get("memory", {}))]
        found += [prefix + key for prefix, part in parts for key, value in part.items() if type(value) in (int, float)]
    return [name for name in dict.fromkeys(found) if name not in ("seed", "threads")]


def _value(result: Result, measure: str) -> float | None:
    # What a method does between tasks is part of what training with it costs.
    if measure == "training_seconds":
        parts = [_value(result, "seconds.train"), _value(result, "seconds.consolidate")]
        return None if parts[0] is None else parts[0] + (parts[1] or 0.0)
    found: Any = result
    for key in measure.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def _sure(values: Iterable[float]) -> Estimate:
    found = estimate(values)
    assert found is not None, "an accuracy matrix has no empty cells"
    return found
