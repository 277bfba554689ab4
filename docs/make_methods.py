"""Write docs/methods.md from the docstrings and settings of the methods: `python docs/make_methods.py`."""

from __future__ import annotations

import inspect
from pathlib import Path

from settings_table import settings_table

from lifelong.methods import METHODS, overview


def main() -> None:
    parts = ["# Methods\n\nWritten by `python docs/make_methods.py` from the code; do not edit.\n\n", *_table()]
    for name, kind in METHODS.items():
        paper = f"\n\nPaper: {kind.paper}" if kind.paper else ""
        scenarios = ", ".join(scenario.value for scenario in kind.scenarios)
        free = overview.spelled(kind.boundaries_unless)
        boundaries = f"\n\nWithout task boundaries: with `{free}`" if free else ""
        alone = f"\n\nCannot be chained: {kind.alone}" if kind.alone else ""
        parts.append(f"\n## {name}\n\n{inspect.getdoc(kind)}{paper}\n\nScenarios: {scenarios}{boundaries}{alone}\n")
        parts += settings_table(kind)
    Path(__file__).with_name("methods.md").write_text("".join(parts))


def _table() -> list[str]:
    headings = [heading.replace("-\n", "").replace("\n", " ") for heading in overview.HEADINGS]
    rows = [headings, ["---"] * len(headings), *(overview.row(name, kind) for name, kind in METHODS.items())]
    return [*(f"| {' | '.join(cells)} |\n" for cells in rows), f"\n{overview.LEGEND}\n"]


if __name__ == "__main__":
    main()
