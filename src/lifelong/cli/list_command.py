"""`lifelong list`: what there is, with settings and defaults."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from lifelong.cli.arguments import Parser
from lifelong.errors import unknown

KINDS = ("streams", "methods", "models", "data", "optimizers")


def configure(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("kind", nargs="?", help=f"one of {', '.join(KINDS)}; all by default")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")


def main(arguments: Namespace) -> int:
    """List; returns the exit status."""
    if arguments.kind is not None and arguments.kind not in KINDS:
        raise unknown("kind", arguments.kind, KINDS)
    kinds = KINDS if arguments.kind is None else (arguments.kind,)
    found = {kind: _entries(kind) for kind in kinds}
    if arguments.json:
        print(json.dumps(found if arguments.kind is None else found[arguments.kind]))
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    for kind, entries in found.items():
        console.print(f"[bold]{kind}[/bold]")
        for name, entry in entries.items():
            paper = f" ({entry['paper']})" if entry.get("paper") else ""
            console.print(f"  [cyan]{name}[/cyan]: {entry['meaning']}{paper}", soft_wrap=True)
            for setting in entry.get("settings", []):
                shown = f"{setting['name']} = {setting['default']}: {setting['meaning']}"
                console.print(f"      {shown}", soft_wrap=True, markup=False)
    return 0


def _entries(kind: str) -> dict[str, dict[str, Any]]:
    if kind == "streams":
        from lifelong.streams import KINDS as STREAMS

        return {name: {"meaning": meaning} for name, meaning in STREAMS.items()}
    if kind == "data":
        from lifelong.data import NAMES

        return {name: {"meaning": meaning} for name, meaning in NAMES.items()}
    if kind == "optimizers":
        from lifelong.training.optimizers import optimizer_names

        return {name: {"meaning": f"torch.optim, {name}"} for name in optimizer_names()}
    if kind == "models":
        from lifelong.models import MODELS

        return {name: _entry(model) for name, model in MODELS.items()}
    from lifelong.methods import METHODS

    return {
        name: {
            **_entry(method),
            "family": method.family,
            "paper": method.paper,
            "scenarios": [scenario.value for scenario in method.scenarios],
        }
        for name, method in METHODS.items()
    }


def _entry(kind: type) -> dict[str, Any]:
    from lifelong import settings

    return {
        "meaning": (kind.__doc__ or "").split("\n", 1)[0],
        "settings": [
            {"name": field.name, "default": settings.default_of(field), "meaning": field.metadata["meaning"]}
            for field in settings.fields(kind)
        ],
    }
