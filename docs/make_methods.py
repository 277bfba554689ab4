"""Write docs/methods.md from the docstrings and settings of the methods: `python docs/make_methods.py`."""

from __future__ import annotations

import inspect
from pathlib import Path

from lifelong import settings
from lifelong.methods import METHODS


def main() -> None:
    parts = ["# Methods\n\nWritten by `python docs/make_methods.py` from the code; do not edit.\n"]
    for name, kind in METHODS.items():
        paper = f"\n\nPaper: {kind.paper}" if kind.paper else ""
        scenarios = ", ".join(scenario.value for scenario in kind.scenarios)
        parts.append(f"\n## {name}\n\n{inspect.getdoc(kind)}{paper}\n\nScenarios: {scenarios}\n")
        declared = settings.fields(kind)
        if declared:
            parts.append("\n| setting | default | meaning |\n| --- | --- | --- |\n")
        for field in declared:
            meaning = field.metadata["meaning"].replace("|", "\\|")
            parts.append(f"| `{field.name}` | `{settings.default_of(field)}` | {meaning} |\n")
    Path(__file__).with_name("methods.md").write_text("".join(parts))


if __name__ == "__main__":
    main()
