"""`lifelong advise`: which method suits what is given, and why."""

from __future__ import annotations

import dataclasses
import json
from argparse import BooleanOptionalAction, Namespace
from typing import TYPE_CHECKING, get_args, get_type_hints

from lifelong import settings
from lifelong.cli.arguments import Parser, value

if TYPE_CHECKING:
    from lifelong.experiments.advise import Advice


def configure(parser: Parser) -> None:
    """Declare the options: one for every constraint."""
    from lifelong.experiments.advise import Constraints

    hints = get_type_hints(Constraints)
    for field in settings.fields(Constraints):
        default = settings.default_of(field)
        meaning = field.metadata["meaning"] + ("" if default is None else f" (default {default})")
        option = f"--{field.name.replace('_', '-')}"
        if hints[field.name] is bool:
            parser.add_argument(option, action=BooleanOptionalAction, default=None, help=meaning)
        else:
            words = [each for each in get_args(hints[field.name]) if isinstance(each, str)]
            parser.add_argument(option, default=None, help=meaning, metavar="|".join(words) or "NUMBER")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")


def main(arguments: Namespace) -> int:
    """Advise; returns the exit status."""
    from lifelong.experiments.advise import Constraints, advise, measured

    names = [field.name for field in settings.fields(Constraints)]
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    given = {name: value(each) if isinstance(each, str) else each for name, each in given.items()}
    constraints = settings.build(Constraints, given, "advise")
    found = advise(constraints)
    source = {key: each for key, each in measured().items() if key != "scenarios"}
    if arguments.json:
        listed = [dataclasses.asdict(each) for each in found]
        print(json.dumps({"given": dataclasses.asdict(constraints), "measured": source, "advice": listed}))
        return 0
    _print(found, f"Measured on {source['what']}, by `{source['command']}` on {source['machine']}, {source['date']}.")
    return 0


def _print(found: list[Advice], source: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    fitting = [each for each in found if each.fits]
    table = Table(box=None, pad_edge=False)
    for heading in ("Method", "Accuracy there, %", "Time", "Keeps, MB", "Why"):
        table.add_column(heading)
    for each in fitting:
        accuracy = "-" if each.accuracy is None else f"{100 * each.accuracy:.1f}"
        if each.interval is not None:
            accuracy += f" +- {100 * each.interval:.1f}"
        time = "-" if each.time is None else f"{each.time:.1f} x"
        size = "-" if each.megabytes is None else f"{each.megabytes:.2g}"
        table.add_row(each.method, accuracy, time, size, "; ".join(each.reasons))
    if fitting:
        console.print(table)
    else:
        console.print("No method fits all of this; what stands in the way:")
    console.print(f"\n{source} Another stream may rank them otherwise: `lifelong compare` tells.", soft_wrap=True)
    out = [each for each in found if not each.fits]
    if out:
        console.print("\nNot for you:")
    for each in out:
        console.print(f"  {each.method}: {'; '.join(each.reasons)}", soft_wrap=True)
