"""From one YAML file to the runs that it means: methods times seeds, for each experiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lifelong import settings
from lifelong.errors import InputError, closest, unknown
from lifelong.experiments.recipe import NESTED, Recipe, recipe, spaceless
from lifelong.experiments.start import with_network

T = TypeVar("T")

_ABOVE = ("methods", "seeds", "experiments", "description")


@dataclass(frozen=True)
class Planned:
    """One run of a comparison.

    Args:
        experiment: name of the experiment that it belongs to, or None.
        label: name of its row; a method may stand in several rows with other settings.
        recipe: what is run.
        expected: ranges `(low, high)` by measure that the mean over seeds must land in, or None.
    """

    experiment: str | None
    label: str
    recipe: Recipe
    expected: dict[str, tuple[float, float]] | None

    @property
    def folder(self) -> Path:
        """Where it goes within the comparison's folder."""
        return Path(self.experiment or "", self.label, f"seed-{self.recipe.seed}")


def plan(values: Mapping[str, Any]) -> list[Planned]:
    """Return the runs that `values` describe, in the order in which they are run.

    Args:
        values: settings of `Recipe` shared by all runs, with `methods` (names, or a mapping from row label to settings
            of the method and of the recipe), `seeds` (how many, from 0, or a list) and `experiments` (a mapping from
            name to what is other there).

    Raises:
        InputError: an unknown name, or a value of the wrong type or out of range.
    """
    if "experiments" not in values:
        return _experiment(None, values)
    shared = {key: value for key, value in values.items() if key != "experiments"}
    runs = []
    for name, own in experiments_of(values["experiments"]).items():
        runs += _experiment(name, merged(shared, own))
    return runs


def experiments_of(value: Any) -> dict[str, Mapping[str, Any]]:
    """Return what is other in each experiment, by its name, which can be that of a folder.

    Raises:
        InputError: no mapping of mappings, or such a name.
    """
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"experiments must be a mapping, and is {value!r}")
    for name, own in value.items():
        if own is not None and not isinstance(own, Mapping):
            raise InputError(f"experiments: {name} must be a mapping of settings, and is {own!r}")
    return names_of_folders({str(name): own or {} for name, own in value.items()})


def names_of_folders(named: dict[str, T]) -> dict[str, T]:
    """Return `named`, of rows or experiments: each names a folder of the comparison's, and must not lead out of it.

    Raises:
        InputError: one does.
    """
    for each in named:
        if each in ("", ".", "..") or "/" in each or "\\" in each:
            raise InputError(f"{each!r} cannot be the name of a row or an experiment: it names a folder")
    return named


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with what `own` says instead, mapping by mapping; a method's own settings are kept together."""
    result = dict(base)
    for key, value in own.items():
        old = result.get(key)
        if key == "methods":
            rows = {} if old is None else rows_of(key, old)
            result[key] = {**rows, **{row: {**rows.get(row, {}), **each} for row, each in rows_of(key, value).items()}}
        elif isinstance(value, Mapping) and isinstance(old, Mapping):
            result[key] = {**old, **value}
        else:
            result[key] = value
    return result


def rows_of(key: str, rows: Any) -> dict[str, dict[str, Any]]:
    """Return the settings of each row that stands under `key` (`methods`, `algorithms`): names, or a mapping.

    Raises:
        InputError: neither, or a row that is no mapping of settings or cannot be the name of a folder.
    """
    if isinstance(rows, str):
        rows = [name for name in rows.split(",") if name]
    if isinstance(rows, Mapping):
        for label, own in rows.items():
            if own is not None and not isinstance(own, Mapping):
                raise InputError(f"{key}: {label} must be a mapping of settings, and is {own!r}")
        return names_of_folders({str(label): dict(own or {}) for label, own in rows.items()})
    if isinstance(rows, Iterable):
        return names_of_folders({str(label): {} for label in rows})
    raise InputError(f"{key} = {rows!r} must be names, or a mapping from row to settings")


def _experiment(name: str | None, values: Mapping[str, Any]) -> list[Planned]:
    shared = with_network({key: value for key, value in values.items() if key not in _ABOVE})
    # A row with weights of its own has the network of the others, or the table would compare two.
    shared.setdefault("model", Recipe.model)
    if shared.get("method_settings"):
        setting = next(iter(shared["method_settings"]))
        raise InputError(f"method.{setting} is of no method in a comparison: say methods.ROW.{setting}")
    if shared.get("method") is not None:
        raise InputError(f"method = {shared['method']!r} is of a single run: a comparison names its rows in methods")
    rows = rows_of("methods", values.get("methods", ["naive"]))
    runs = [
        Planned(name, label, *_run(label, own, shared, seed))
        for label, own in rows.items()
        for seed in seeds_of(values.get("seeds", 1))
    ]
    if not runs:
        raise InputError("nothing to run: give at least one method and one seed")
    return runs


def _run(label: str, own: Mapping[str, Any], shared: Mapping[str, Any], seed: int) -> tuple[Recipe, Any]:
    from lifelong.methods import METHODS

    chosen = spaceless(str(own.get("method", label)))
    parts = chosen.split("+")
    for part in parts:
        if part not in METHODS:
            raise unknown("method", part, METHODS)
    of_method = set(parts) if len(parts) > 1 else {field.name for field in settings.fields(METHODS[chosen])}
    of_recipe = {field.name for field in settings.fields(Recipe)} - {"method", "method_settings", "seed"}
    values: dict[str, Any] = {**shared, "method": chosen, "seed": seed}
    method_settings: dict[str, Any] = {}
    for key, value in own.items():
        if key in of_method:
            method_settings[key] = value
        elif key in of_recipe:
            old = values.get(key)
            nested = key in NESTED and isinstance(value, Mapping) and isinstance(old, Mapping)
            values[key] = {**old, **value} if nested and old is not None else value
        elif key not in ("method", "expected"):
            near = (
                closest(key, of_method | of_recipe) or f": it has {', '.join(sorted(of_method)) or 'none of its own'}"
            )
            raise InputError(f"method {label} has no setting {key!r}{near}")
    values["method_settings"] = method_settings
    return recipe(values), _ranges(label, own.get("expected"))


def _ranges(label: str, expected: Any) -> dict[str, tuple[float, float]] | None:
    if expected is None:
        return None
    try:
        return {str(name): (float(low), float(high)) for name, (low, high) in expected.items()}
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"method {label}: expected must map measures to [low, high], and is {expected!r}") from None


def seeds_of(seeds: Any) -> list[int]:
    """Return the seeds that are meant by how many (3), a list, or either as text (`0,1`; `7,` for one alone).

    Raises:
        InputError: none of these, or one of them twice.
    """
    if isinstance(seeds, str):
        parts = seeds.removesuffix(",").split(",")
        if all(part.isdecimal() for part in parts):
            seeds = [int(part) for part in parts] if "," in seeds else int(seeds)
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 0:
        return list(range(seeds))
    if isinstance(seeds, list) and seeds and all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        if len(set(seeds)) < len(seeds):
            raise InputError(f"seeds = {seeds!r} has one of them twice, which would be the same run")
        return seeds
    raise InputError(f"seeds = {seeds!r} must be how many (3) or a list of them ([0, 1, 2])")
