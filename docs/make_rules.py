"""Write docs/rules.md from the docstrings and settings of the merge rules: `python docs/make_rules.py`."""

from __future__ import annotations

import inspect
from pathlib import Path

from lifelong import settings
from lifelong.merging.rule import Folding
from lifelong.merging.rules import RULES

_HEADINGS = ("rule", "family", "needs a base", "experts", "order matters", "block by block", "one at a time", "paper")


def main() -> None:
    parts = ["# Merge rules\n\nWritten by `python docs/make_rules.py` from the code; do not edit.\n\n"]
    parts += [f"| {' | '.join(cells)} |\n" for cells in (_HEADINGS, ["---"] * len(_HEADINGS), *_rows())]
    for name, rule in RULES.items():
        paper = f"\n\nPaper: {rule.paper}" if rule.paper else ""
        parts.append(f"\n## {name}\n\n{inspect.getdoc(rule)}{paper}\n")
        declared = settings.fields(rule)
        if declared:
            parts.append("\n| setting | default | meaning |\n| --- | --- | --- |\n")
        spelled = {field: word for word, field in rule.spelled.items()}
        for field in declared:
            each = ", per expert" if field.name in rule.per_expert else ""
            meaning = field.metadata["meaning"].replace("|", "\\|")
            word = spelled.get(field.name, field.name)
            parts.append(f"| `{word}`{each} | `{settings.default_of(field)}` | {meaning} |\n")
        if rule.ignored:
            reasons = "; ".join(f"`{word}` ({reason})" for word, reason in rule.ignored.items())
            parts.append(f"\nAccepted in recipes, and changing nothing: {reasons}.\n")
    Path(__file__).with_name("rules.md").write_text("".join(parts))


def _rows() -> list[list[str]]:
    return [
        [
            name,
            rule.family,
            "yes" if rule.needs_base else "no",
            str(rule.least) if rule.least == rule.most else f"{rule.least} or more" if rule.most is None else "",
            "no" if rule.symmetric else "yes",
            "yes" if rule.blockwise else "no",
            "yes" if issubclass(rule, Folding) else "no",
            rule.paper,
        ]
        for name, rule in RULES.items()
    ]


if __name__ == "__main__":
    main()
