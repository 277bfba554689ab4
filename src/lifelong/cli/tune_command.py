"""`lifelong tune`: a grid of settings, judged on validation samples."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from lifelong.cli.arguments import Parser, add_recipe, recipe_values, value
from lifelong.errors import InputError


def configure(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("recipe", nargs="?", help="YAML file of settings; options override it")
    parser.add_argument("--row", help="row of the recipe's methods to tune")
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="SETTING=A,B",
        help="values to try, such as method.strength=1,10,100",
    )
    parser.add_argument("--seeds", default="1", metavar="N", help="runs a combination (default 1)")
    add_recipe(parser, without=("seed", "evaluate_on"))
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")


def main(arguments: Namespace) -> int:
    """Search; returns the exit status."""
    from rich.console import Console

    from lifelong.experiments.plan import merged
    from lifelong.experiments.tune import best, row_values, tune
    from lifelong.yaml_file import read_yaml

    base: dict[str, Any] = read_yaml(Path(arguments.recipe)) if arguments.recipe else {}
    values = merged(row_values(base, arguments.row), recipe_values(arguments))
    if not arguments.seeds.isdecimal() or int(arguments.seeds) == 0:
        raise InputError(f"seeds = {arguments.seeds!r} must be a number, at least 1")
    console = Console(stderr=True)
    trials = []
    for trial in tune(values, dict(map(_axis, arguments.grid)), list(range(int(arguments.seeds)))):
        trials.append(trial)
        reached = "diverged" if trial.average_accuracy is None else f"{trial.average_accuracy:.2%}"
        console.print(f"{_settings(trial.settings)}: {reached}", highlight=False, markup=False, soft_wrap=True)
    found = best(trials)
    if arguments.json:
        print(json.dumps({"best": vars(found), "trials": [vars(trial) for trial in trials]}))
    else:
        print(f"best on validation samples: {_settings(found.settings)} with {found.average_accuracy:.2%}")
    return 0


def _axis(text: str) -> tuple[str, list[Any]]:
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise InputError(f"--grid {text!r} must be SETTING=VALUE,VALUE, such as method.strength=1,10,100")
    return name, [value(part) for part in values.split(",")]


def _settings(chosen: dict[str, Any]) -> str:
    return " ".join(f"{name}={each}" for name, each in chosen.items())
