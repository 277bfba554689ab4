"""The page of continual-learning runs: what each method reached, and what it cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from lifelong.reports.columns import accuracy_columns, cost_columns
from lifelong.reports.page import as_csv, check_name, figures, write_page
from lifelong.reports.summary import Result, Section, measures, sections

_SURROUNDINGS = ("lifelong", "torch", "python", "platform", "device", "threads")


def write_report(results: Sequence[Result], out: Path, against: str | None = None) -> Path:
    """Write the page `out` and, in a folder of its name beside it, every chart as CSV, PNG, SVG and PDF.

    Args:
        results: dictionaries as in `result.json`.
        out: the page, for instance `report.html`; replaced only when the new one is whole.
        against: label of the row whose accuracy is taken from that of the others, seed by seed; None for none.

    Returns:
        `out`.

    Raises:
        InputError: nothing to report, a result that lacks a field, results that cannot stand in one row, no row
            `against`, or an `out` without an ending to tell it from its folder.
        OSError: the disk is full or may not be written.
    """
    # Imported here: a table in a terminal should not cost the second that drawing libraries take to import.
    from lifelong.reports.learning_charts import all_charts

    check_name(out)
    found = sections(results, against)
    places = {label: place for place, label in enumerate(_unique(row.label for part in found for row in part.rows))}
    parts: list[dict[str, Any]] = []
    for number, section in enumerate(found, 1):
        # Experiments get a number too: two names may differ only in characters that no file name should have.
        prefix = f"{number}-{_slug(section.title)}-" if len(found) > 1 else ""
        columns = accuracy_columns(section) + cost_columns(section)
        parts.append(
            {
                "section": section,
                "columns": columns,
                "headings": [column.long for column in columns],
                "rows": [(row.label, [column.cell(row, section) for column in columns]) for row in section.rows],
                "measures": as_csv(measures(section)),
                "figures": figures(all_charts(section, places), prefix),
                "recipe": recipe(section),
            }
        )
    title = " and ".join(_unique(f"{result['stream']} {result['data']}" for result in results))
    content = {
        "heading": f"Continual learning on {title}",
        "title": title,
        "parts": parts,
        "surroundings": _surroundings(results),
    }
    return write_page("learning.html.j2", out, [each for part in parts for each in part["figures"]], content)


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


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "experiment"


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
