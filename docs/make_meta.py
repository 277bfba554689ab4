"""Write docs/meta-algorithms.md from the docstrings and settings of the algorithms: `python docs/make_meta.py`."""

from __future__ import annotations

import inspect
from pathlib import Path

from settings_table import settings_table

from lifelong.meta import ALGORITHMS


def main() -> None:
    parts = ["# Meta-learning algorithms\n\nWritten by `python docs/make_meta.py` from the code; do not edit.\n"]
    for name, kind in ALGORITHMS.items():
        paper = f"\n\nPaper: {kind.paper}" if kind.paper else ""
        tasks = "classification and regression" if kind.regression else "classification"
        parts.append(f"\n## {name}\n\n{inspect.getdoc(kind)}{paper}\n\nTasks: {tasks}\n")
        parts += settings_table(kind)
    Path(__file__).with_name("meta-algorithms.md").write_text("".join(parts))


if __name__ == "__main__":
    main()
