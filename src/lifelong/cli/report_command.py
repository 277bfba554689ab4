"""`lifelong report`: the table and the page of what is finished, runs or merges, without their code or data."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from lifelong.cli.arguments import Parser
from lifelong.errors import InputError


def configure(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument("folder", help="what `lifelong compare`, `run`, `meta train` or `merge --report` wrote")
    parser.add_argument("-o", "--output", help="the page; DIR/report.html by default; FILE.md for the tables of runs")
    parser.add_argument("--against", metavar="ROW", help="show each row's accuracy less that of ROW, seed by seed")
    parser.add_argument("--json", action="store_true", help="the results as one JSON document instead of the table")


def main(arguments: Namespace) -> int:
    """Draw; returns the exit status."""
    folder = Path(arguments.folder)
    if arguments.output and Path(arguments.output).suffix.lower() not in (".html", ".htm", ".md"):
        raise InputError(f"--output {arguments.output}: the page is FILE.html, or FILE.md for the tables of runs")
    out = Path(arguments.output) if arguments.output else folder / "report.html"
    kept = folder / "report.json"
    trained = [] if kept.is_file() else _meta_results(folder)
    if not kept.is_file() and not trained:
        return _runs(folder, out, arguments)
    if arguments.against is not None:
        raise InputError(f"--against compares rows of `lifelong compare`, and {folder} holds something else")
    return _meta(trained, out, arguments.json) if trained else _again(kept, out, arguments.json)


def _again(kept: Path, out: Path, as_json: bool) -> int:
    """Draw a page of which the values are kept."""
    from lifelong.reports import PAGES, read_values

    kind, values = read_values(kept)
    if out.suffix.lower() == ".md":
        raise InputError(f"{out}: the page of a {kind} has no form in Markdown, so give a name that ends in .html")
    page = PAGES[kind](values, out)
    print(json.dumps(values) if as_json else page)
    return 0


def _meta(found: list[dict[str, Any]], out: Path, as_json: bool) -> int:
    """Draw the page of meta-trainings, from their results."""
    from lifelong.reports import write_meta_report

    if out.suffix.lower() == ".md":
        raise InputError(
            f"{out}: the page of meta-trainings has no form in Markdown, so give a name that ends in .html"
        )
    page = write_meta_report(found, out)
    print(json.dumps(found) if as_json else page)
    return 0


def _runs(folder: Path, out: Path, arguments: Namespace) -> int:
    """Draw the page of runs, from their results."""
    from rich.console import Console

    from lifelong.experiments.result import read, read_all
    from lifelong.reports import print_table, write_markdown, write_report

    if (folder / "results.json").is_file():
        found = read_all(folder / "results.json")
    elif (folder / "result.json").is_file():
        found = [read(folder / "result.json")]
    else:
        raise InputError(
            f"{folder} holds neither results.json nor result.json nor report.json: "
            "give a folder that a run or `lifelong merge --report` has finished in"
        )
    write = write_markdown if out.suffix.lower() == ".md" else write_report
    page = write(found, out, arguments.against)
    if arguments.json:
        print(json.dumps(found))
    else:
        print_table(found, Console(), arguments.against)
        print(page)
    return 0


def _meta_results(folder: Path) -> list[dict[str, Any]]:
    """Return the results of the meta-trainings in or below `folder`, each with its name; none where it holds others."""
    found = []
    for file in sorted(folder.rglob("result.json")):
        try:
            result = json.loads(file.read_text())
        except ValueError:
            continue
        if isinstance(result, dict) and result.get("kind") == "meta":
            name = file.parent.relative_to(folder).as_posix()
            found.append({**result, "name": result["algorithm"] if name == "." else name})
    return found
