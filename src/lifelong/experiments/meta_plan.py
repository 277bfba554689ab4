"""From one YAML file to the meta-trainings that it means: algorithms times seeds, for each experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifelong import settings
from lifelong.errors import InputError, closest, unknown
from lifelong.experiments.meta_recipe import META_NESTED, MetaRecipe, meta_recipe
from lifelong.experiments.plan import experiments_of, merged, rows_of, seeds_of

_ABOVE = ("description", "algorithms", "seeds", "experiments")


@dataclass(frozen=True)
class PlannedMeta:
    """One meta-training of several: its name, which is its folder as well, and its recipe.

    `expected` is the range that the mean score over seeds after the last step must land in, or None.
    """

    name: str
    recipe: MetaRecipe
    expected: tuple[float, float] | None = None

    @property
    def folder(self) -> Path:
        """Where it goes within the folder of all."""
        return Path(self.name)


def is_plan(values: Mapping[str, Any]) -> bool:
    """Return whether `values` describe several trainings."""
    return any(key in values for key in ("algorithms", "seeds", "experiments"))


def meta_plan(
    values: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    *,
    algorithms: Sequence[str] | None = None,
    experiments: Sequence[str] | None = None,
) -> list[PlannedMeta]:
    """Return the trainings that `values` describe.

    Args:
        values: settings of `MetaRecipe` shared by all, with `algorithms` (a mapping from row to settings of the
            algorithm and of the recipe, and the range `expected: [low, high]` of its score), `seeds` (how many, from 0,
            or a list) and `experiments` (a mapping from name to what is other there, rows among it).
        given: settings that override all of these.
        algorithms: rows to train; all by default. Without rows in `values`, names of algorithms.
        experiments: names of experiments to train; all by default.

    Raises:
        InputError: an unknown name, or a value of the wrong type or out of range.
    """
    found = experiments_of(values["experiments"]) if "experiments" in values else {"": {}}
    for name in experiments or ():
        if name not in found:
            raise unknown("experiment", name, found)
    return [
        each
        for name, own in found.items()
        if experiments is None or name in experiments
        for each in _experiment(name, values, own, given or {}, algorithms)
    ]


def _experiment(
    name: str,
    values: Mapping[str, Any],
    own: Mapping[str, Any],
    given: Mapping[str, Any],
    algorithms: Sequence[str] | None,
) -> Iterator[PlannedMeta]:
    rows = rows_of("algorithms", values.get("algorithms", algorithms or ("maml",)))
    for row, each in rows_of("algorithms", own.get("algorithms", {})).items():
        rows[row] = {**rows.get(row, {}), **each}
    for row in algorithms or ():
        if row not in rows:
            raise unknown("algorithm of the recipe", row, rows)
    shared = {key: each for key, each in {**values, **own}.items() if key not in _ABOVE}
    for row in dict.fromkeys(algorithms or rows):
        for seed in seeds_of(own.get("seeds", values.get("seeds", 1))):
            described = merged(_values(row, rows[row], shared, seed), given)
            folder = "/".join(part for part in (name, row, f"seed-{seed}") if part)
            yield PlannedMeta(folder, meta_recipe(described), _range(row, rows[row].get("expected")))


def _values(row: str, own: Mapping[str, Any], shared: Mapping[str, Any], seed: int) -> dict[str, Any]:
    from lifelong.meta import ALGORITHMS

    chosen = str(own.get("algorithm", row))
    if chosen not in ALGORITHMS:
        raise unknown("algorithm", chosen, ALGORITHMS)
    of_algorithm = {field.name for field in settings.fields(ALGORITHMS[chosen])}
    of_recipe = {field.name for field in settings.fields(MetaRecipe)} - {"seed", *META_NESTED.values()}
    values: dict[str, Any] = {**shared, "algorithm": chosen, "algorithm_settings": {}, "seed": seed}
    for key, each in own.items():
        if key in of_algorithm:
            values["algorithm_settings"][key] = each
        elif key in of_recipe:
            values[key] = each
        elif key != "expected":
            near = closest(key, of_algorithm | of_recipe) or f": it has {', '.join(sorted(of_algorithm))}"
            raise InputError(f"algorithm {row} has no setting {key!r}{near}")
    return values


def _range(row: str, expected: Any) -> tuple[float, float] | None:
    if expected is None:
        return None
    try:
        low, high = (float(each) for each in expected)
    except (TypeError, ValueError):
        raise InputError(f"algorithm {row}: expected must be [low, high], and is {expected!r}") from None
    return low, high
