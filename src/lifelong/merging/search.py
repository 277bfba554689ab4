"""Search over merges: coefficients, densities and choices of layers, against what an evaluation says of the result.

In a recipe any value may be `{search: [low, high]}` (with `log: true` or `whole: true`), a number to be found between
two others, or `{choose: [a, b, c]}`, one of several: of a layer range, a density, a model, the merge method itself.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lifelong.errors import InputError, StateError, closest
from lifelong.merging import engine, planning
from lifelong.merging.recipe import parsed

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "cma")
TRIALS = "trials.json"
_JOURNAL = "search.log"

Place = tuple[str | int, ...]
Evaluate = Callable[[Path], Mapping[str, float]]


@dataclass(frozen=True)
class Unknown:
    """A value of a recipe that is searched for.

    Args:
        place: the keys and indices that lead to it.
        low: of a number, its least value; or
        high: its largest.
        log: drawn evenly by its logarithm.
        whole: an integer.
        choices: what it is one of, where it is no number.
    """

    place: Place
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        return ".".join(str(part) for part in self.place)

    def suggested(self, trial: optuna.Trial) -> Any:
        """Return the value that `trial` tries."""
        if self.choices:
            # By number: optuna stores choices that are no numbers or words badly.
            return self.choices[trial.suggest_categorical(self.name, range(len(self.choices)))]
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Tried:
    """One merge that was tried: its number, what was found for the unknowns, and what the evaluation said of it."""

    number: int
    values: Mapping[str, Any]
    scores: Mapping[str, float]


def unknowns(values: Any, place: Place = ()) -> list[Unknown]:
    """Return what is to be searched for in a recipe, in the order in which it stands there.

    Raises:
        InputError: a range that is none, or no choices.
    """
    if isinstance(values, Mapping):
        if "search" in values or "choose" in values:
            return [_unknown(values, place)]
        return [each for key, inner in values.items() for each in unknowns(inner, (*place, str(key)))]
    if isinstance(values, list):
        return [each for index, inner in enumerate(values) for each in unknowns(inner, (*place, index))]
    return []


def _unknown(values: Mapping[str, Any], place: Place) -> Unknown:
    where = ".".join(str(part) for part in place)
    known = ("search", "log", "whole") if "search" in values else ("choose",)
    for key in values:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}{closest(str(key), known)}")
    if "choose" in values:
        choices = values["choose"]
        if not isinstance(choices, list) or not choices:
            raise InputError(f"{where}: choose must be a list, and is {choices!r}")
        return Unknown(place, choices=tuple(choices))
    ends = values["search"]
    numbers = isinstance(ends, list) and len(ends) == 2 and all(isinstance(each, int | float) for each in ends)
    if not numbers or not ends[0] < ends[1] or (values.get("log") and ends[0] <= 0):
        raise InputError(f"{where}: search must be two ascending numbers (above 0 with log), and is {ends!r}")
    return Unknown(place, float(ends[0]), float(ends[1]), bool(values.get("log")), bool(values.get("whole")))


def filled(recipe: Mapping[str, Any], found: Mapping[Place, Any]) -> dict[str, Any]:
    """Return `recipe` with values in the places of what was searched for."""
    result = copy.deepcopy(dict(recipe))
    for place, value in found.items():
        inner: Any = result
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
    return result


def search(
    recipe: Mapping[str, Any],
    evaluate: Evaluate,
    out: Path,
    *,
    trials: int,
    minimize: bool = False,
    sampler: str = "tpe",
    seed: int = 0,
    resume: bool = False,
    folder: Path = Path(),
) -> Iterator[Tried]:
    """Try merges, keep the best, and yield each one tried.

    Args:
        recipe: with unknowns, as a YAML file has it.
        evaluate: says of the folder of a merged model how good it is: one score, or several by name.
        out: folder for the search: every trial in `trials.json`, and the best recipe and model, or those of the front
            where there are several scores, in `best-N.yml` and `best-N/`.
        trials: how many merges to try in all, those of an earlier search that is resumed counted.
        minimize: smaller scores are better.
        sampler: `tpe` (Bergstra et al. 2011), for all kinds of unknowns; or `cma` (CMA-ES, Hansen & Ostermeier 2001),
            for numbers that depend on each other.
        seed: of the sampler.
        resume: go on with the search in `out`.
        folder: what relative paths of models start from.

    Raises:
        InputError: a recipe without unknowns, an unknown sampler, an `out` that exists, or merges that fail.
        StateError: `resume` of another recipe.
    """
    wanted = unknowns(recipe)
    if not wanted:
        raise InputError("nothing to search for: write {search: [low, high]} or {choose: [...]} in place of a value")
    study = _study(recipe, out, wanted, minimize, sampler, seed, resume)
    while len(study.trials) < trials:
        trial = study.ask()
        values = {each: each.suggested(trial) for each in wanted}
        scores = _score(filled(recipe, {each.place: value for each, value in values.items()}), evaluate, out, folder)
        _same_scores(study, scores)
        study.set_user_attr("scores", list(scores))
        trial.set_user_attr("scores", scores)
        # Several scores share one study as their mean: optuna must know their number before the first is there.
        study.tell(trial, sum(scores.values()) / len(scores))
        tried = Tried(trial.number, {each.name: value for each, value in values.items()}, scores)
        _record(out, tried)
        yield tried
    _keep(recipe, wanted, out, minimize, folder)


def front(tried: list[Tried], minimize: bool = False) -> list[Tried]:
    """Return the merges that none of the others beats in every score (ties go to the earlier one)."""
    sign = 1 if minimize else -1
    points = [(each, [sign * score for score in each.scores.values()]) for each in tried]
    return [
        each
        for each, point in points
        if not any(
            all(a <= b for a, b in zip(other, point, strict=True)) and (other != point or rival.number < each.number)
            for rival, other in points
            if rival is not each
        )
    ]


def _study(
    recipe: Mapping[str, Any], out: Path, wanted: list[Unknown], minimize: bool, sampler: str, seed: int, resume: bool
) -> optuna.Study:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise InputError("searching needs optuna: pip install 'lifelong[tune]'") from None
    if sampler not in SAMPLERS:
        raise InputError(f"unknown sampler {sampler!r}{closest(sampler, SAMPLERS) or ': known are tpe, cma'}")
    if sampler == "cma" and any(each.choices for each in wanted):
        raise InputError("cma searches for numbers alone: use tpe where the recipe says choose")
    asked = json.dumps(recipe, sort_keys=True)
    if out.exists() and not resume:
        raise InputError(f"{out} exists: choose another folder, or go on with --resume")
    out.mkdir(parents=True, exist_ok=True)
    if (out / "recipe.json").exists() and (out / "recipe.json").read_text(encoding="utf-8") != asked:
        raise StateError(f"{out} is the search of another recipe")
    (out / "recipe.json").write_text(asked, encoding="utf-8")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kind = optuna.samplers.CmaEsSampler if sampler == "cma" else optuna.samplers.TPESampler
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(out / _JOURNAL))),
        sampler=kind(seed=seed),
        study_name="merge",
        direction="minimize" if minimize else "maximize",
        load_if_exists=True,
    )


def _score(recipe: Mapping[str, Any], evaluate: Evaluate, out: Path, folder: Path) -> dict[str, float]:
    """Merge, evaluate, and remove the merged model again."""
    place = out / "trying"
    shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(out / "trying.partial", ignore_errors=True)
    for _ in engine.merge(planning.plan(parsed(recipe), folder), place, shard_bytes=5 * 10**9):
        pass
    scores = {name: float(score) for name, score in evaluate(place).items()}
    shutil.rmtree(place)
    odd = [name for name, score in scores.items() if not math.isfinite(score)]
    if odd or not scores:
        raise InputError(f"the evaluation must give finite scores, and {odd or 'it'} gave none")
    return scores


def _same_scores(study: optuna.Study, scores: Mapping[str, float]) -> None:
    known = study.user_attrs.get("scores")
    if known is not None and list(scores) != known:
        raise InputError(f"the evaluation gave the scores {list(scores)}, and {known} before")


def _record(out: Path, tried: Tried) -> None:
    path = out / TRIALS
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    found = [each for each in found if each["number"] != tried.number]
    found.append({"number": tried.number, "values": dict(tried.values), "scores": dict(tried.scores)})
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def _keep(recipe: Mapping[str, Any], wanted: list[Unknown], out: Path, minimize: bool, folder: Path) -> None:
    """Write the best recipe, or those of the front, and their models."""
    found = [Tried(**each) for each in json.loads((out / TRIALS).read_text(encoding="utf-8"))]
    for each in front(found, minimize):
        best = filled(recipe, {unknown.place: each.values[unknown.name] for unknown in wanted})
        (out / f"best-{each.number}.yml").write_text(yaml.safe_dump(best, sort_keys=False), encoding="utf-8")
        place = out / f"best-{each.number}"
        if not place.exists():
            for _ in engine.merge(planning.plan(parsed(best), folder), place, shard_bytes=5 * 10**9, resume=True):
                pass
