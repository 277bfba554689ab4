"""What a reader asks of each method: the columns that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from lifelong.reports.summary import Estimate, Row, Section

Cell: TypeAlias = tuple[str, float | str | None]  # what it says, and what it sorts by
UNKNOWN: Cell = ("-", None)


@dataclass(frozen=True)
class Column:
    """A question that a table answers of each row.

    Args:
        short: heading for a terminal, in up to two lines.
        long: heading for a page.
        meaning: what the number is, in a sentence.
        cell: the answer for a row of a section.
    """

    short: str
    long: str
    meaning: str
    cell: Callable[[Row, Section], Cell]


def accuracy_columns(section: Section) -> list[Column]:
    """Return the columns that say how well a method does."""
    end = "Accuracy over all tasks after the last one."
    new = "Accuracy on a task right after learning it, averaged over tasks: plasticity."
    old = "Final accuracy on all tasks but the last: stability."
    lost = "Best accuracy ever reached on an earlier task less its final one; lower is better."
    never = "Final accuracy on tasks that are never learned."
    gained = "Final accuracy on tasks that are never learned less that before any learning: forward transfer."
    found = [
        Column("Accuracy", "Average accuracy at the end, %", end, _of("average_accuracy", percent)),
        Column("New", "On the new task, %", new, _of("new_accuracy", percent)),
        Column("Old", "On the old tasks at the end, %", old, _of("old_accuracy", percent)),
        Column("Forget", "Forgetting, points", lost, _of("forgetting", percent)),
        Column("Unseen", "On tasks never learned, %", never, _of("unseen_accuracy", percent)),
        Column("Gain", "Gained on tasks never learned, points", gained, _of("unseen_transfer", percent)),
    ]
    held_out = any(result.get("unseen_accuracy") is not None for row in section.rows for result in row.results)
    return found[: 6 if held_out else 4] + ([] if section.reference is None else [_against(section.reference)])


def cost_columns(section: Section) -> list[Column]:
    """Return the columns that say what a method costs, needs and, where a recipe says it, should reach."""
    time = "Seconds of training, with what the method does between tasks."
    ratio = "Training time divided by that of plain fine-tuning."
    old, task = (
        "It read samples of earlier tasks; measured.",
        "It answers worse without the task's label; measured.",
    )
    seeds = "Runs that finished; ± is half the 95 % interval over them, by Student's t."
    near = (
        "Accuracy at the end over that of each task's own expert, which a merge was made of, averaged over tasks; "
        "class-incremental the expert answers the task's own classes alone."
    )
    found = [
        Column("Of\nexp.", "Of its experts, %", near, _of("merging.normalised_accuracy", percent)),
        Column("Train\ns", "Training time, s", time, _of("training_seconds", _seconds)),
        Column("x\nnaive", "Training time against naive", ratio, _ratio),
        Column(
            "Pred/s",
            "Predictions a second",
            "Test samples answered for.",
            _of("predict_samples_per_second", _speed),
        ),
        Column(
            "Memory",
            "Memory of the method",
            "What it keeps beside the network.",
            _of("memory.method_bytes", _bytes),
        ),
        Column("Old\ndata", "Needs old data", old, _flag("needs_old_data")),
        Column("Task\nid", "Needs the task's label", task, _flag("needs_task_id")),
        Column("Seeds", "Seeds", seeds, _seeds),
        Column("In\nrange", "In the expected range", "The mean is where the recipe says it must be.", _in_range),
    ]
    asked = {
        "Of\nexp.": any(result.get("merging") for row in section.rows for result in row.results),
        "x\nnaive": section.naive is not None,
        "In\nrange": any(row.expected for row in section.rows),
    }
    return [column for column in found if asked.get(column.short, True)]


def human_bytes(count: float) -> str:
    """Return `count` bytes for a reader: `1.2 MB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def percent(found: Estimate) -> str:
    """Return a share as `97.1±0.3`, in percent."""
    half = "" if found.half_width is None else f"±{100 * found.half_width:.1f}"
    return f"{100 * found.mean:.1f}{half}"


def _of(measure: str, text: Callable[[Estimate], str]) -> Callable[[Row, Section], Cell]:
    def cell(row: Row, _: Section) -> Cell:
        found = row.estimate(measure)
        return UNKNOWN if found is None else (text(found), found.mean)

    return cell


def _against(reference: Row) -> Column:
    def cell(row: Row, _: Section) -> Cell:
        found = None if row is reference else row.difference("average_accuracy", reference)
        return UNKNOWN if found is None else (f"{'+' if found.mean > 0 else ''}{percent(found)}", found.mean)

    name = reference.label
    meaning = f"Average accuracy at the end less that of {name} with the same seed; ± is of these differences."
    return Column(f"Against\n{name}", f"Against {name}, points", meaning, cell)


def _flag(name: str) -> Callable[[Row, Section], Cell]:
    def cell(row: Row, _: Section) -> Cell:
        said = row.flag(name)
        return UNKNOWN if said is None else ("yes" if said else "no", float(said))

    return cell


def _seconds(found: Estimate) -> str:
    return f"{found.mean:.{1 if found.mean < 100 else 0}f}"


def _speed(found: Estimate) -> str:
    return f"{found.mean / 1000:,.1f}k" if found.mean >= 1000 else f"{found.mean:.0f}"


def _bytes(found: Estimate) -> str:
    return human_bytes(found.mean)


def _ratio(row: Row, section: Section) -> Cell:
    ours = row.estimate("training_seconds")
    base = None if section.naive is None else section.naive.estimate("training_seconds")
    if ours is None or base is None or base.mean <= 0:
        return UNKNOWN
    return f"{ours.mean / base.mean:.2f}", ours.mean / base.mean


def _seeds(row: Row, section: Section) -> Cell:
    done, planned = len(row.results), len(section.seeds)
    return str(done) if done == planned else f"{done}/{planned}", done


def _in_range(row: Row, _: Section) -> Cell:
    return ("no" if row.misses else "yes", float(not row.misses)) if row.expected else UNKNOWN
