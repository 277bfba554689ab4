"""Sequences of tasks, and the explicit dict of the kinds that the command line knows."""

from __future__ import annotations

from lifelong.streams.kinds import domains, permuted, rotated, split
from lifelong.streams.task import Scenario, Split, Stream, Task, joined

KINDS = {
    "permuted": "all classes in every task, inputs in another fixed order each",
    "rotated": "all classes in every task, images turned by another angle each",
    "split": "the classes divided among the tasks",
    "domains": "one data set a task (--data a,b,c)",
}

__all__ = [
    "KINDS",
    "Scenario",
    "Split",
    "Stream",
    "Task",
    "domains",
    "joined",
    "permuted",
    "rotated",
    "split",
]
