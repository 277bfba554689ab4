"""The page of a search over merges: which were tried, and which are the best."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lifelong.errors import InputError
from lifelong.reports.columns import Cell
from lifelong.reports.page import as_csv, check_name, figures, write_page


def write_search_report(found: Mapping[str, Any], out: Path) -> Path:
    """Write the page `out` and, in a folder of its name beside it, every chart as CSV, PNG, SVG and PDF.

    Args:
        found: plain values. `trials`: of each merge its `number`, the `values` of the unknowns by name, and its
            `scores` by name. `front`: numbers of those that none beats in all scores; `minimize`: whether smaller
            scores are better. `unknowns`: the `name` of each, its `choices`, if it is one of several, and whether it
            was drawn by its logarithm (`log`). `recipe`: YAML. `surroundings`.
        out: the page, for instance `report.html`; replaced only when the new one is whole.

    Returns:
        `out`.

    Raises:
        InputError: no trials, or an `out` without an ending to tell it from its folder.
        OSError: the disk is full or may not be written.
    """
    # Imported here: drawing libraries take a second to import.
    from lifelong.reports.search_charts import all_charts

    check_name(out)
    if not found["trials"]:
        raise InputError("no trials to report: no merge has been tried yet")
    drawn = figures(all_charts(found))
    scores, names = list(found["trials"][0]["scores"]), [each["name"] for each in found["unknowns"]]
    best = [each for each in found["trials"] if each["number"] in found["front"]]
    table = [{"trial": each["number"], **each["scores"], **each["values"]} for each in found["trials"]]
    content = {
        "heading": f"Search over merges: {len(found['trials'])} trials",
        "title": "search over merges",
        "headings": [*scores, *names],
        "rows": [
            (each["number"], [_cell(each["scores"][s]) for s in scores] + [_cell(each["values"][n]) for n in names])
            for each in best
        ],
        "several": len(scores) > 1,
        "trials": as_csv(table),
        "figures": drawn,
        "recipe": found["recipe"],
        "surroundings": found["surroundings"],
    }
    return write_page("search.html.j2", out, drawn, content)


def _cell(value: Any) -> Cell:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.4g}", value
    text = value if isinstance(value, str) else json.dumps(value)
    return text, None
