"""Tables, charts and a web page, from results alone: they never need the code that made them."""

from __future__ import annotations

from lifelong.reports.kept import PAGES, read_values, write_page_and_values
from lifelong.reports.learning import write_report
from lifelong.reports.markdown import write_markdown
from lifelong.reports.merge import write_merge_report
from lifelong.reports.meta import misses, over_seeds, protocol, write_meta_report
from lifelong.reports.search import write_search_report
from lifelong.reports.table import print_table

__all__ = [
    "PAGES",
    "misses",
    "over_seeds",
    "print_table",
    "protocol",
    "read_values",
    "write_markdown",
    "write_merge_report",
    "write_meta_report",
    "write_page_and_values",
    "write_report",
    "write_search_report",
]
