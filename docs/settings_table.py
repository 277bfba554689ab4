"""What generated pages say of settings."""

from __future__ import annotations

from typing import Any

from lifelong import settings


def settings_table(kind: Any) -> list[str]:
    """Return the lines of a Markdown table of the settings of `kind`, none where it has none."""
    declared = settings.fields(kind)
    lines = ["\n| setting | default | meaning |\n| --- | --- | --- |\n"] if declared else []
    for field in declared:
        meaning = field.metadata["meaning"].replace("|", "\\|")
        lines.append(f"| `{field.name}` | `{settings.default_of(field)}` | {meaning} |\n")
    return lines
