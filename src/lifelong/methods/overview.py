"""What users choose a method by, as fields and as the row of a table; the command line and the docs show the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifelong.methods.method import ALL_SCENARIOS, Method

# Headings, in up to two lines, of the cells that `row` returns.
HEADINGS = (
    "Method",
    "Family",
    "Scenarios",
    "Task\nid",
    "Keeps\nsamples",
    "Grows",
    "Single\npass",
    "Num-\nbers",
    "Bound-\naries",
    "Paper",
)
LEGEND = (
    "Scenarios: what it can do. Task id: the task of a sample must be told at prediction in every scenario. "
    "Keeps samples: of old tasks. Grows: with the number of tasks, by more than the head. Single pass: made for seeing "
    "each sample once. Numbers: it can do tasks that predict one instead of a class. Boundaries: it must know where a "
    "task ends; optional, if a setting frees it."
)


def traits(kind: type[Method]) -> dict[str, Any]:
    """Return the class variables of `kind` that say whom it is for, as JSON."""
    return {
        "family": kind.family,
        "paper": kind.paper,
        "scenarios": [scenario.value for scenario in kind.scenarios],
        "needs_task_id": kind.needs_task_id,
        "keeps_samples": kind.keeps_samples,
        "grows": kind.grows,
        "single_pass": kind.single_pass,
        "regression": kind.regression,
        "alone": kind.alone,
        "boundaries": kind.boundaries,
        "boundaries_unless": dict(kind.boundaries_unless),
    }


def row(name: str, kind: type[Method]) -> list[str]:
    """Return the cells under `HEADINGS` for the method called `name`."""
    flags = (kind.needs_task_id, kind.keeps_samples, kind.grows, kind.single_pass, kind.regression)
    return [
        name,
        kind.family,
        "all" if set(kind.scenarios) == set(ALL_SCENARIOS) else " ".join(each.value for each in kind.scenarios),
        *("yes" if flag else "no" for flag in flags),
        "optional" if kind.boundaries and kind.boundaries_unless else "needed" if kind.boundaries else "no",
        kind.paper or "-",
    ]


def spelled(settings: Mapping[str, Any]) -> str:
    """Return `settings` as messages name them: `online = True`."""
    return ", ".join(f"{name} = {value}" for name, value in settings.items())
