"""Pages whose values lie beside them as JSON, so that they can be drawn again without what they were made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lifelong.errors import StateError, unknown
from lifelong.reports.merge import write_merge_report
from lifelong.reports.page import write_whole
from lifelong.reports.search import write_search_report

# By the name of their kind in the file.
PAGES: dict[str, Callable[[Mapping[str, Any], Path], Path]] = {
    "merge": write_merge_report,
    "search": write_search_report,
}


def write_page_and_values(kind: str, found: Mapping[str, Any], out: Path) -> Path:
    """Write the page `out` of a `kind` in `PAGES`, and its values `found` beside it as `.json`; returns `out`."""
    page = PAGES[kind](found, out)
    write_whole(out.with_suffix(".json"), json.dumps({"page": kind, "values": found}).encode())
    return page


def read_values(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the kind of a page and its values, as they were kept.

    Raises:
        StateError: the file is damaged, or of another program.
        InputError: a kind of page that this version does not know.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        kind, values = kept["page"], dict(kept["values"])
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} does not hold the values of a page: {error!r}") from error
    if kind not in PAGES:
        raise unknown("page", kind, PAGES)
    return kind, values
