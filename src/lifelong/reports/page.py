"""A web page: one file that needs no network and no server, with its charts as files beside it."""

from __future__ import annotations

import base64
import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from lifelong.errors import InputError

if TYPE_CHECKING:
    from lifelong.reports.chart import Chart


class Figure(NamedTuple):
    """A chart on a page: its name there and in the folder beside it, and its data as CSV."""

    key: str
    chart: Chart
    data: str


def figures(charts: Sequence[Chart], prefix: str = "") -> list[Figure]:
    """Return `charts` as figures of a page, less those that have nothing to show."""
    return [Figure(prefix + chart.name, chart, as_csv(chart.records)) for chart in charts if chart.records]


def check_name(out: Path) -> None:
    """Refuse a page without an ending to tell it from its folder."""
    if not out.suffix:
        raise InputError(f"a report needs a name that ends in .html, and this is {out}")


def write_page(template: str, out: Path, drawn: Sequence[Figure], content: Mapping[str, Any]) -> Path:
    """Write the page `out` and, in a folder of its name beside it, every chart as CSV, PNG, SVG and PDF.

    Args:
        template: the file beside this one that says what is on the page.
        out: the page; replaced only when the new one is whole.
        drawn: all of its figures.
        content: what the template asks for: `heading`, `title`, `surroundings` (what made it), and what is its own.

    Returns:
        `out`.

    Raises:
        InputError: an `out` without an ending.
        OSError: the disk is full or may not be written.
    """
    # Drawing libraries take a second to import, which a table in a terminal should not cost.
    import vl_convert

    from lifelong.reports.chart import VEGA_LITE

    check_name(out)
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for key, chart, data in drawn:
        for kind, file in {"csv": data.encode(), **chart.drawn()}.items():
            write_whole(folder / f"{key}.{kind}", file)
    page = _template(template).render(
        **content,
        specs={key: chart.spec for key, chart, _ in drawn},
        bundle=vl_convert.javascript_bundle(vl_version=VEGA_LITE),  # type: ignore[call-arg]  # wrong stub
        embedded=_embedded,
        folder=folder.name,
    )
    write_whole(out, page.encode())
    return out


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a table as CSV, its columns those of the first record."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(records)
    return text.getvalue()


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file at `path` in one step, so that a crash leaves the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def _embedded(kind: str, text: str) -> str:
    return f"data:text/{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
