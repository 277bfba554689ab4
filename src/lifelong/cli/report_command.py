"""`lifelong report`: the table and the page of runs that are finished, without their code or data."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from lifelong.cli.arguments import Parser
from lifelong.errors import InputError


def configure(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("folder", help="what `lifelong compare` or `lifelong run` wrote")
    parser.add_argument("-o", "--output", help="the page; DIR/report.html by default; FILE.md for tables alone")
    parser.add_argument("--json", action="store_true", help="the results as one JSON document instead of the table")


def main(arguments: Namespace) -> int:
    """Draw; returns the exit status."""
    from rich.console import Console

    from lifelong.experiments.result import read, read_all
    from lifelong.reports import print_table, write_markdown, write_report

    folder = Path(arguments.folder)
    if (folder / "results.json").is_file():
        found = read_all(folder / "results.json")
    elif (folder / "result.json").is_file():
        found = [read(folder / "result.json")]
    else:
        raise InputError(
            f"{folder} holds neither results.json nor result.json: give a folder that a run has finished in"
        )
    out = Path(arguments.output) if arguments.output else folder / "report.html"
    page = write_markdown(found, out) if out.suffix == ".md" else write_report(found, out)
    if arguments.json:
        print(json.dumps(found))
    else:
        print_table(found, Console())
        print(page)
    return 0
