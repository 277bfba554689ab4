"""The search for settings, on validation samples cut from training data; test samples are never looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from lifelong.errors import DivergedError, InputError, unknown
from lifelong.experiments import build
from lifelong.experiments.plan import plan
from lifelong.experiments.recipe import Recipe, recipe, record
from lifelong.experiments.run import run

# Held out where the recipe does not say.
VALIDATION = 0.1


@dataclass(frozen=True)
class Trial:
    """One combination of settings, and what it reached on validation samples.

    Args:
        settings: by dotted name.
        average_accuracy: mean over seeds, 0..1, or None where training diverged.
    """

    settings: dict[str, Any]
    average_accuracy: float | None


def tune(values: Mapping[str, Any], grid: Mapping[str, list[Any]], seeds: list[int]) -> Iterator[Trial]:
    """Yield a trial for each combination of `grid`, in order; the best is the one of greatest `average_accuracy`.

    Args:
        values: settings of the recipe that all trials share.
        grid: values to try by setting; `method.strength` names a setting of the method.
        seeds: runs a trial.

    Raises:
        InputError: a setting that the recipe does not have.
    """
    if not grid:
        raise InputError("nothing to search: give --grid SETTING=VALUE,VALUE at least once")
    combinations = [dict(zip(grid, combination, strict=True)) for combination in product(*grid.values())]
    planned = [(chosen, [_with(values, {**chosen, "seed": seed}) for seed in seeds]) for chosen in combinations]
    for _, recipes in planned:
        build.method(recipes[0])  # what is refused should not wait for others to finish
    for chosen, recipes in planned:
        reached = [_validation_accuracy(each) for each in recipes]
        whole = [each for each in reached if each is not None]
        yield Trial(chosen, sum(whole) / len(whole) if len(whole) == len(reached) else None)


def best(trials: list[Trial]) -> Trial:
    """Return the trial of greatest accuracy; the first of equals.

    Raises:
        InputError: all trials diverged.
    """
    whole = [trial for trial in trials if trial.average_accuracy is not None]
    if not whole:
        raise InputError("training diverged with every combination of the grid: try a smaller lr")
    return max(whole, key=lambda trial: trial.average_accuracy or 0.0)


def row_values(values: Mapping[str, Any], row: str | None) -> dict[str, Any]:
    """Return the settings of one row of a comparison's recipe, as `tune` takes them.

    Raises:
        InputError: the recipe has several rows and none was named, or none of that name.
    """
    if "methods" not in values:
        return dict(values)
    planned = {each.label: each for each in plan({**values, "seeds": 1})}
    if row is None:
        raise InputError(f"name the row to tune with --row: {', '.join(planned)}")
    if row not in planned:
        raise unknown("row", row, planned)
    return record(planned[row].recipe)


def _with(values: Mapping[str, Any], chosen: Mapping[str, Any]) -> Recipe:
    share = values.get("validation") or VALIDATION
    changed: dict[str, Any] = {**values, "validation": share, "evaluate_on": "validation"}
    for name, value in chosen.items():
        group, _, inner = name.partition(".")
        if not inner:
            changed[name] = value
            continue
        key = f"{group}_settings"
        changed[key] = {**changed.get(key, {}), inner: value}
    return recipe(changed)


def _validation_accuracy(made: Recipe) -> float | None:
    try:
        return float(run(made)["average_accuracy"])
    except DivergedError:
        return None
