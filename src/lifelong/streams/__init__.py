"""Sequences of tasks, and the explicit dict of the kinds that the command line knows."""

from __future__ import annotations

from lifelong.streams.assemble import Cut
from lifelong.streams.kinds import alike, blurry, domains, permuted, rotated, split
from lifelong.streams.task import Scenario, Split, Stream, Task, joined

KINDS = {
    "permuted": "all classes in every task, inputs in another fixed order each",
    "rotated": "all classes in every task, images turned by another angle each",
    "split": "the classes divided among the tasks",
    "domains": "one data set a task (--data a,b,c)",
    "blurry": "as split, with a share (--blur) of each class's samples in other tasks; no task boundaries",
}
# Kinds in which a learner is not told where a task ends.
UNBOUNDED = ("blurry",)

__all__ = [
    "KINDS",
    "UNBOUNDED",
    "Cut",
    "Scenario",
    "Split",
    "Stream",
    "Task",
    "alike",
    "blurry",
    "domains",
    "joined",
    "permuted",
    "rotated",
    "split",
]
