"""`lifelong list`: what there is, with settings and defaults."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lifelong.cli.arguments import Parser
from lifelong.errors import unknown

if TYPE_CHECKING:
    from rich.console import Console

    from lifelong.merging.rule import Rule

KINDS = ("streams", "methods", "rules", "meta", "models", "data", "optimizers")


def configure(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("kind", nargs="?", help=f"one of {', '.join(KINDS)}; all by default")
    parser.add_argument("name", nargs="?", help="one entry of it, for instance a method; all by default")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")


def main(arguments: Namespace) -> int:
    """List; returns the exit status."""
    if arguments.kind is not None and arguments.kind not in KINDS:
        raise unknown("kind", arguments.kind, KINDS)
    kinds = KINDS if arguments.kind is None else (arguments.kind,)
    found = {kind: _entries(kind) for kind in kinds}
    if arguments.name is not None:
        entries = found[arguments.kind]
        if arguments.name not in entries:
            raise unknown(arguments.kind.removesuffix("s"), arguments.name, entries)
        found = {arguments.kind: {arguments.name: entries[arguments.name]}}
    if arguments.json:
        print(json.dumps(found if arguments.kind is None else found[arguments.kind]))
        return 0
    from rich.console import Console
    from rich.markup import escape

    from lifelong.methods.overview import spelled

    console = Console(highlight=False)
    for kind, entries in found.items():
        console.print(f"[bold]{kind}[/bold]")
        if kind == "methods":
            _print_methods(console, list(entries))
        for name, entry in entries.items():
            console.print(f"  [cyan]{name}[/cyan]: {escape(entry['meaning'])}", soft_wrap=True)
            if entry.get("boundaries_unless"):
                console.print(f"      without task boundaries: {spelled(entry['boundaries_unless'])}", soft_wrap=True)
            if entry.get("alone"):
                console.print(f"      cannot be chained: {entry['alone']}", soft_wrap=True)
            for setting in entry.get("settings", []):
                shown = f"{setting['name']} = {setting['default']}: {setting['meaning']}"
                console.print(f"      {shown}", soft_wrap=True, markup=False)
    return 0


def _print_methods(console: Console, names: Sequence[str]) -> None:
    from rich import box
    from rich.table import Table

    from lifelong.methods import METHODS, overview

    plain = not console.is_terminal
    table = Table(box=None if plain else box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for heading in overview.HEADINGS:
        table.add_column(heading)
    for name in names:
        table.add_row(*overview.row(name, METHODS[name]))
    if plain:
        table.width = console.measure(table, options=console.options.update(width=1000)).maximum
    console.print(table, crop=False)
    console.print(f"{overview.LEGEND}\n", soft_wrap=True)


def _entries(kind: str) -> dict[str, dict[str, Any]]:
    if kind == "streams":
        from lifelong.streams import KINDS as STREAMS
        from lifelong.streams import UNBOUNDED

        return {name: {"meaning": meaning, "boundaries": name not in UNBOUNDED} for name, meaning in STREAMS.items()}
    if kind == "data":
        from lifelong.data import NAMES

        return {name: {"meaning": meaning} for name, meaning in NAMES.items()}
    if kind == "optimizers":
        from lifelong.training.optimizers import optimizer_names

        return {name: {"meaning": f"torch.optim, {name}"} for name in optimizer_names()}
    if kind == "rules":
        from lifelong.merging.rules import RULES

        return {name: _rule(rule) for name, rule in RULES.items()}
    return _learners(kind)


def _learners(kind: str) -> dict[str, dict[str, Any]]:
    if kind == "meta":
        from lifelong.meta import ALGORITHMS

        return {
            name: {**_entry(each), "family": each.family, "paper": each.paper, "regression": each.regression}
            for name, each in ALGORITHMS.items()
        }
    if kind == "models":
        return _models()
    from lifelong.methods import METHODS, overview

    return {name: {**_entry(method), **overview.traits(method)} for name, method in METHODS.items()}


def _models() -> dict[str, dict[str, Any]]:
    from lifelong.models import MODELS, Pretrained
    from lifelong.models.pretrained import NAMED, PREFIXED

    settings = _entry(Pretrained)["settings"]
    sources = {**NAMED, **PREFIXED, "package.module:function": ("returns a classifier of your own", None)}
    made = {name: {"meaning": meaning, "settings": settings} for name, (meaning, _) in sources.items()}
    return {**{name: _entry(model) for name, model in MODELS.items()}, **made}


def _rule(kind: type[Rule]) -> dict[str, Any]:
    entry = _entry(kind)
    spelled = {field: word for word, field in kind.spelled.items()}
    for each in entry["settings"]:
        each["name"] = spelled.get(each["name"], each["name"])
    return {**entry, "family": kind.family, "paper": kind.paper, "needs_base": kind.needs_base}


def _entry(kind: type) -> dict[str, Any]:
    from lifelong import settings

    return {
        "meaning": (kind.__doc__ or "").split("\n", 1)[0],
        "settings": [
            {"name": field.name, "default": settings.default_of(field), "meaning": field.metadata["meaning"]}
            for field in settings.fields(kind)
        ],
    }
