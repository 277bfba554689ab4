"""The table that a terminal or a log shows."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lifelong.reports.columns import Column, accuracy_columns, cost_columns
from lifelong.reports.summary import Result, Section, sections


def print_table(results: Sequence[Result], console: Console, against: str | None = None) -> None:
    """Print what each method reached and what it cost, a table an experiment.

    Args:
        results: dictionaries as in `result.json`.
        console: where to; a terminal too narrow for all columns gets two tables, accuracies and costs, and a
            log or pipe a plain line a method.
        against: label of the row whose accuracy is taken from that of the others, seed by seed; None for none.

    Raises:
        InputError: nothing to report, a result that lacks a field, results that cannot stand in one row, or no row
            `against`.
    """
    for section in sections(results, against):
        tasks = len(section.rows[0].results[0]["tasks"])
        # Text, because a label from a user may hold what rich takes for markup.
        console.print(
            Text(f"{section.title}: {tasks} tasks, accuracies in % ± half a 95 % interval", style="bold"),
            soft_wrap=True,
        )
        if section.note:
            console.print(Text(section.note), soft_wrap=True)
        reached, cost = accuracy_columns(section), cost_columns(section)
        whole = _table(section, reached + cost, plain=not console.is_terminal)
        wanted = console.measure(whole, options=console.options.update(width=1000)).maximum
        if not console.is_terminal:
            whole.width = wanted
            console.print(whole, crop=False)
        elif wanted <= console.width:
            console.print(whole)
        else:
            console.print(_table(section, reached, plain=False), "")
            console.print(_table(section, cost, plain=False))
        for row in section.rows:
            for miss in row.misses:
                console.print(Text(f"{row.label}: {miss}"), soft_wrap=True)


def _table(section: Section, columns: Sequence[Column], *, plain: bool) -> Table:
    table = Table(box=None if plain else box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("Method", overflow="fold", min_width=8)
    for column in columns:
        table.add_column(column.short.replace("\n", " ") if plain else column.short, justify="right", no_wrap=True)
    for row in section.rows:
        table.add_row(Text(row.label), *(Text(column.cell(row, section)[0]) for column in columns))
    return table
