"""The page of meta-trainings: what each reached, how it adapts, and how it learned."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from lifelong.errors import InputError
from lifelong.reports.columns import UNKNOWN, Cell, human_bytes
from lifelong.reports.page import check_name, figures, write_page
from lifelong.reports.summary import Estimate, estimate

# The data whose tasks are regressions, without classes.
_WAVES = "sinusoids"

_PARTS = ("train", "validation", "test")
# So many names of classes are told; a result has them all.
_LISTED = 20
_SURROUNDINGS = ("lifelong", "torch", "python", "platform", "device")


def write_meta_report(found: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Write the page `out` and, in a folder of its name beside it, every chart as CSV, PNG, SVG and PDF.

    Args:
        found: dictionaries as in `result.json` of a meta-training, each with a `name`.
        out: the page, for instance `report.html`; replaced only when the new one is whole.

    Returns:
        `out`.

    Raises:
        InputError: nothing to report, or an `out` without an ending to tell it from its folder.
        OSError: the disk is full or may not be written.
    """
    # Imported here: drawing libraries take a second to import.
    from lifelong.reports.meta_charts import all_charts

    check_name(out)
    if not found:
        raise InputError("there are no results to report")
    drawn = figures(all_charts(found))
    title = ", ".join(dict.fromkeys(str(each["data"]) for each in found))
    first = found[0]
    content = {
        "heading": f"Meta-learning on {title}",
        "title": title,
        "judged": " or ".join(dict.fromkeys(each["recipe"].get("evaluate_on", "test") for each in found)),
        "unseen": _unseen(found),
        "headings": [heading for heading, _ in _COLUMNS],
        "rows": [(each["name"], [cell(each) for _, cell in _COLUMNS]) for each in found],
        "figures": drawn,
        "seeds": over_seeds(found),
        "examples": [(each["name"], each["example"]) for each in found if each.get("example")][:4],
        "splits": _splits(found),
        "recipes": [(each["name"], _yaml(each["recipe"])) for each in found],
        "surroundings": {name: str(first[name]) for name in _SURROUNDINGS if first.get(name)},
    }
    return write_page("meta.html.j2", out, drawn, content)


def protocol(found: Mapping[str, Any]) -> str:
    """Return what the tasks of a result are made of, as far as it moves the score; of training what is other there."""
    recipe = found["recipe"]
    sizes = f"{recipe['shots']}-shot, {recipe['queries']} {'query' if recipe['queries'] == 1 else 'queries'}"
    sizes += ", validation tasks" if recipe.get("evaluate_on") == "validation" else ""
    changed = (("train_ways", "ways", "way"), ("train_shots", "shots", "shot"))
    others = [f"{recipe[own]}-{unit}" for own, usual, unit in changed if recipe.get(own) not in (None, recipe[usual])]
    trained = f", trained {' '.join(others)}" if others else ""
    if recipe["data"] == _WAVES:
        return f"{sizes}{trained}"
    ways = "domains, " if _is_of_domains(recipe) else f"{recipe['ways']}-way "
    rotated = {"train": ", rotated in training", "all": ", rotated"}.get(recipe["rotations"] or "", "")
    statistics = f", {recipe['statistics']}" if found.get("batch_norm", True) else ""
    return f"{ways}{sizes}{statistics}{rotated}{trained}"


def over_seeds(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Cell]]]:
    """Return, for trainings that differ in their seed alone, the mean scores of all and the interval over seeds."""
    rows: list[tuple[str, list[Cell]]] = []
    for name, runs in _by_row(found).items():
        ends = [estimate(run["test"][place] for run in runs) for place in (0, -1)]
        if len(runs) > 1 and None not in ends:
            percent = runs[0]["measure"] == "accuracy"
            rows.append((name, [(str(len(runs)), len(runs)), *(_of_seeds(each, percent) for each in ends if each)]))
    return rows


def misses(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one phrase for each row whose mean score after the last step is outside its `expected` range."""
    said = []
    for name, runs in _by_row(found).items():
        mean, expected = fmean(run["test"][-1] for run in runs), runs[0].get("expected")
        if expected and not expected[0] <= mean <= expected[1]:
            said.append(f"{name}: {mean:.4g} after the last step, expected {expected[0]:g} to {expected[1]:g}")
    return said


def _splits(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Cell]]]:
    """Return which classes or domains are for what, a row for each division that there is."""
    rows: dict[str, list[Cell]] = {}
    for each in found:
        parts = each.get("classes", {})
        cells: list[Cell] = [(_listed(parts[name]), len(parts[name])) for name in _PARTS if name in parts]
        if any(number for _, number in cells) and cells not in rows.values():
            rows[each["name"]] = cells
    # Most pages have one split alone, which is of all trainings.
    return list(rows.items()) if len(rows) > 1 else [("all", cells) for cells in rows.values()]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return f"{len(names)}: {shown} …" if len(names) > _LISTED else shown


def _yaml(recipe: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))


def _unseen(found: Sequence[Mapping[str, Any]]) -> str:
    """Return what is new to training in the test tasks of `found`."""
    return " or ".join(dict.fromkeys(_kind(each["recipe"]) for each in found))


def _kind(recipe: Mapping[str, Any]) -> str:
    if recipe["data"] == _WAVES:
        return "waves"
    return "domains" if _is_of_domains(recipe) else "classes"


def _is_of_domains(recipe: Mapping[str, Any]) -> bool:
    return "," in recipe["data"] or bool(recipe.get("validation_data") or recipe.get("test_data"))


def _by_row(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for each in found:
        groups.setdefault(re.sub(r"/?seed-\d+$", "", each["name"]), []).append(each)
    return groups


def _of_seeds(found: Estimate, percent: bool) -> Cell:
    half = found.half_width or 0.0
    return (f"{found.mean:.2%} ± {half:.2%}" if percent else f"{found.mean:.4f} ± {half:.4f}"), found.mean


def _score(place: int) -> Any:
    def cell(each: Mapping[str, Any]) -> Cell:
        mean, half = each["test"][place], each["interval"][place]
        if each["measure"] == "accuracy":
            return f"{mean:.2%} ± {half:.2%}", mean
        return f"{mean:.4f} ± {half:.4f}", mean

    return cell


def _calibration(each: Mapping[str, Any]) -> Cell:
    return (f"{each['calibration'][-1]:.3f}", each["calibration"][-1]) if each["calibration"] else UNKNOWN


_COLUMNS: list[tuple[str, Any]] = [
    ("Algorithm", lambda each: (each["algorithm"], None)),
    ("Tasks", lambda each: (protocol(each), None)),
    ("Before", _score(0)),
    ("After", _score(-1)),
    ("Steps", lambda each: (str(len(each["test"]) - 1), len(each["test"]) - 1)),
    ("Calibration error", _calibration),
    ("Test tasks", lambda each: (f"{each['test_tasks']:,}", each["test_tasks"])),
    ("Iterations", lambda each: (f"{each['iterations']:,}", each["iterations"])),
    ("Minutes", lambda each: (f"{each['seconds'] / 60:.1f}", each["seconds"])),
    ("Tasks a second", lambda each: (f"{each['tasks_per_second']:.0f}", each["tasks_per_second"])),
    ("Milliseconds a task", lambda each: (f"{1000 * each['seconds_per_task']:.1f}", each["seconds_per_task"])),
    ("Memory", lambda each: (human_bytes(each["memory"]["peak_rss_bytes"]), each["memory"]["peak_rss_bytes"])),
]
