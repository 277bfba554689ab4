"""The web page: one file that needs no network and no server, with its charts as files beside it."""

from __future__ import annotations

import base64
import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from lifelong.errors import InputError
from lifelong.reports.columns import accuracy_columns, cost_columns
from lifelong.reports.summary import Result, Section, measures, sections

_SURROUNDINGS = ("lifelong", "torch", "python", "platform", "device", "threads")


def write_report(results: Sequence[Result], out: Path) -> Path:
    """Write the page `out` and, in a folder of its name beside it, every chart as CSV, PNG, SVG and PDF.

    Args:
        results: dictionaries as in `result.json`.
        out: the page, for instance `report.html`; replaced only when the new one is whole.

    Returns:
        `out`.

    Raises:
        InputError: nothing to report, a result that lacks a field, results that cannot stand in one row, or
            an `out` without an ending to tell it from its folder.
        OSError: the disk is full or may not be written.
    """
    # Drawing libraries take a second to import, which a table in a terminal should not cost.
    import vl_convert

    from lifelong.reports import charts

    if not out.suffix:
        raise InputError(f"a report needs a name that ends in .html, and this is {out}")
    found = sections(results)
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    places = {label: place for place, label in enumerate(_unique(row.label for part in found for row in part.rows))}
    parts: list[dict[str, Any]] = []
    for number, section in enumerate(found, 1):
        # Experiments get a number too: two names may differ only in characters that no file name should have.
        prefix = f"{number}-{_slug(section.title)}-" if len(found) > 1 else ""
        figures = [(prefix + chart.name, chart, _csv(chart.records)) for chart in charts.all_charts(section, places)]
        for key, chart, table in figures:
            for kind, content in {"csv": table.encode(), **chart.drawn()}.items():
                write_whole(folder / f"{key}.{kind}", content)
        parts.append(
            {
                "section": section,
                "columns": accuracy_columns() + cost_columns(section),
                "measures": _csv(measures(section)),
                "figures": figures,
                "recipe": recipe(section),
            }
        )
    page = _template().render(
        parts=parts,
        specs={key: chart.spec for part in parts for key, chart, _ in part["figures"]},
        title=" and ".join(_unique(f"{result['stream']} {result['data']}" for result in results)),
        surroundings=_surroundings(results),
        bundle=vl_convert.javascript_bundle(vl_version=charts.VEGA_LITE),  # type: ignore[call-arg]  # wrong stub
        embedded=_embedded,
        folder=folder.name,
    )
    write_whole(out, page.encode())
    return out


def recipe(section: Section) -> str:
    """Return the YAML that runs a section again: what all runs share, then what each row has of its own."""
    recipes = [result["recipe"] for row in section.rows for result in row.results]
    shared = {key: value for key, value in recipes[0].items() if all(each.get(key) == value for each in recipes)}
    aside = ("method", "seed")
    rows = {}
    for row in section.rows:
        first = row.results[0]["recipe"]
        method = dict(first["method"])
        own = {key: value for key, value in first.items() if key not in shared and key not in aside}
        name = method.pop("name")
        rows[row.label] = ({} if name == row.label else {"method": name}) | method | own
        if row.expected:
            rows[row.label]["expected"] = {measure: list(ends) for measure, ends in row.expected.items()}
    shared = {key: value for key, value in shared.items() if key not in aside}
    whole = {**shared, "seeds": section.seeds, "methods": rows}
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _surroundings(results: Sequence[Result]) -> dict[str, str]:
    """Return each version and machine, with every value that occurs: runs may come from several machines."""
    found = {name: _unique(str(result[name]) for result in results if result.get(name)) for name in _SURROUNDINGS}
    finished = [str(result["finished"]) for result in results if result.get("finished")]
    return {name: "; ".join(values) for name, values in found.items() if values} | (
        {"last run finished": max(finished)} if finished else {}
    )


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(records)
    return text.getvalue()


def _embedded(kind: str, text: str) -> str:
    return f"data:text/{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "experiment"


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file at `path` in one step, so that a crash leaves the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
