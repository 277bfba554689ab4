"""The tables of a report as Markdown, for documents that are kept in a repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lifelong.reports.columns import accuracy_columns, cost_columns
from lifelong.reports.page import write_whole
from lifelong.reports.summary import Result, Section, sections


def write_markdown(results: Sequence[Result], out: Path, against: str | None = None) -> Path:
    """Write a table an experiment, of what each method reached and what it cost, to `out` and return it.

    Args:
        results: dictionaries as in `result.json`.
        out: a file, replaced only when the new one is whole.
        against: label of the row whose accuracy is taken from that of the others, seed by seed; None for none.

    Raises:
        InputError: nothing to report, a result that lacks a field, results that cannot stand in one row, or no row
            `against`.
    """
    write_whole(out, "\n".join(_table(section) for section in sections(results, against)).encode())
    return out


def _table(section: Section) -> str:
    columns = accuracy_columns(section) + cost_columns(section)
    headings = ["Method", *(column.long for column in columns)]
    rows = [[row.label, *(column.cell(row, section)[0] for column in columns)] for row in section.rows]
    machine = section.rows[0].results[0]["platform"]
    tasks = len(section.rows[0].results[0]["tasks"])
    lines = [headings, ["---"] * len(headings), *rows]
    note = "± is half a 95 % interval over seeds. " + " ".join(f"{each.long}: {each.meaning}" for each in columns)
    table = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
    told = f"{tasks} tasks, on {machine}. {section.note}".rstrip()
    return f"## {section.title}\n\n{told}\n\n{table}\n{note}\n"
