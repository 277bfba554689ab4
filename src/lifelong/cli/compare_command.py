"""`lifelong compare`: several methods times several seeds, then the table and the page."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lifelong.cli.arguments import Parser, Values, add_execution, add_recipe, recipe_values
from lifelong.errors import InputError, closest, unknown

if TYPE_CHECKING:
    from lifelong.experiments.plan import Planned


def configure(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("recipe", nargs="?", help="YAML file of settings; options override it")
    parser.add_argument("--methods", metavar="A,B", help="methods to compare, or rows of the recipe to run")
    parser.add_argument(
        "--seeds",
        metavar="N",
        help="how many seeds from 0: 3; or a list: 0,1,2, or 7, (with a comma) for one alone (default 1)",
    )
    parser.add_argument("--experiments", metavar="A,B", help="experiments of the recipe to run; all by default")
    add_recipe(parser, without=("method", "seed"))
    parser.groups = (*parser.groups, "methods")
    parser.add_argument(
        "--out",
        required=True,
        help="folder for results and report.html; finished runs are kept, and shown beside new ones of the same stream",
    )
    parser.add_argument("--against", metavar="ROW", help="show each row's accuracy less that of ROW, seed by seed")
    parser.add_argument("--workers", default="1", metavar="N", help="processes that share the runs (default 1)")
    parser.add_argument("--resume", action="store_true", help="accepted for symmetry: half-done runs always go on")
    add_execution(parser)


def main(arguments: Namespace) -> int:
    """Compare; returns the exit status, 2 where a run failed."""
    from lifelong.cli.progress import watching
    from lifelong.experiments.compare import Failed, compare, together
    from lifelong.experiments.plan import plan
    from lifelong.experiments.run import Every
    from lifelong.experiments.tracking import tracked_all

    planned = plan(_values(arguments))
    out, workers = Path(arguments.out), _workers(arguments.workers)
    every = Every.parse(arguments.checkpoint_every)
    _check_against(arguments.against, planned, out)
    failures = []
    running = compare(planned, out, workers=workers, checkpoint_every=every)
    with watching(len(planned)) as watcher:
        for run, event in tracked_all(running, out, arguments.track):
            name = f"{run.experiment + ' ' if run.experiment else ''}{run.label} seed {run.recipe.seed}"
            watcher.see(name, event)
            if isinstance(event, Failed):
                failures.append(f"{name}: {event.reason}")
    results = together(planned, out)
    if results:
        _show(results, out, arguments)
    for failure in failures:
        print(f"lifelong: error: {failure}", file=sys.stderr)
    return 2 if failures else 0


def _check_against(label: str | None, planned: Sequence[Planned], out: Path) -> None:
    """Refuse a row that will not be there, before others are run."""
    from lifelong.experiments.compare import together

    if label is None:
        return
    labels = {run.label for run in planned} | {each["label"] for each in together(planned, out)}
    if label not in labels:
        raise unknown("row", label, labels)


def _show(results: list[Values], out: Path, arguments: Namespace) -> None:
    from rich.console import Console

    from lifelong.reports import print_table, write_report

    page = write_report(results, out / "report.html", arguments.against)
    if arguments.json:
        print(json.dumps(results))
        return
    print_table(results, Console(), arguments.against)
    print(page)


def _values(arguments: Namespace) -> Values:
    from lifelong.experiments.plan import merged
    from lifelong.yaml_file import read_yaml

    base = read_yaml(Path(arguments.recipe)) if arguments.recipe else {}
    given = recipe_values(arguments)
    values = merged(_without(base, given), given)
    if arguments.seeds is not None:
        values["seeds"] = arguments.seeds
    if arguments.methods is not None:
        names = [name for name in arguments.methods.split(",") if name]
        if not names:
            raise InputError(f"methods = {arguments.methods!r} names no method")
        values = _only_methods(values, names)
    for name, each in arguments.dotted.items():
        group, _, rest = name.partition(".")
        if group == "methods":
            values = _set_method(values, rest, each)
    if arguments.experiments is not None:
        values["experiments"] = _only_experiments(values.get("experiments", {}), arguments.experiments.split(","))
    return values


def _without(values: Values, given: Values) -> Values:
    """Take out of a recipe, its rows and its experiments what options say: an option is the last word on every run."""
    kept: Values = {}
    for key, each in values.items():
        if key in ("methods", "experiments") and isinstance(each, dict):
            kept[key] = {name: _without(own, given) if isinstance(own, dict) else own for name, own in each.items()}
        elif key not in given:
            kept[key] = each
        elif isinstance(each, dict) and isinstance(given[key], dict):
            kept[key] = {name: inner for name, inner in each.items() if name not in given[key]}
    return kept


def _only_methods(values: Values, names: list[str]) -> Values:
    """Keep the rows `names` of the recipe; a name that is no row is a method with its defaults."""
    from lifelong.experiments.plan import merged

    rows = merged({}, {"methods": values.get("methods", {})})["methods"]
    inner = {row for own in (values.get("experiments") or {}).values() for row in ((own or {}).get("methods") or {})}
    # A row of some experiments is not one of the others.
    chosen = {name: rows.get(name, {}) for name in names if name in rows or name not in inner}
    kept = {**values, "methods": chosen}
    if "experiments" in values:
        own = {name: _only_rows(each or {}, names) for name, each in values["experiments"].items()}
        kept["experiments"] = {name: each for name, each in own.items() if chosen or each["methods"]}
    return kept


def _only_rows(experiment: Values, names: list[str]) -> Values:
    rows = experiment.get("methods") or {}
    return {**experiment, "methods": {row: each for row, each in rows.items() if row in names}}


def _set_method(values: Values, name: str, value: object) -> Values:
    from lifelong.experiments.plan import merged

    row, _, setting = name.partition(".")
    rows = merged({}, {"methods": values.get("methods", {})})["methods"]
    if row not in rows or not setting:
        raise InputError(f"--methods.{name}: no row {row!r}{closest(row, rows) or f', rows are {sorted(rows)}'}")
    return merged(values, {"methods": {row: {setting: value}}})


def _only_experiments(experiments: Values, names: list[str]) -> Values:
    for name in names:
        if name not in experiments:
            raise InputError(
                f"no experiment {name!r}{closest(name, experiments) or f', there are {sorted(experiments)}'}"
            )
    return {name: experiments[name] for name in names}


def _workers(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise InputError(f"workers = {text!r} must be a number of processes, at least 1")
    return int(text)
