"""What is seen while a run goes on: a bar on a terminal, a line a task in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lifelong.experiments.compare import Failed
from lifelong.experiments.run import Evaluated, Finished, RunEvent
from lifelong.training.loop import Step, TaskStarted

# Redrawing costs more than a step of a small network.
_INTERVAL = 0.2


def bar(console: Console) -> Progress:
    """Return a bar with room for `measures` and the time left, which is drawn on a terminal alone."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[measures]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


@contextmanager
def told_above(shown: Progress) -> Iterator[None]:
    """Show the bar, and above it what the library logs: what takes minutes before there are events."""
    logger = logging.getLogger("lifelong")
    level = logger.level
    with shown:
        lines = logging.StreamHandler()  # of the standard error that the bar has put in the place of its own
        logger.addHandler(lines)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(lines)
            logger.setLevel(level)


class Watcher:
    """Draws events; one for a whole command, however many runs it makes.

    Args:
        console: where to draw; standard error, so that standard output holds results only.
        runs: how many runs the command makes.
    """

    def __init__(self, console: Console, runs: int) -> None:
        self.console = console
        self.runs = runs
        self.done = 0
        self.steps = 0
        self.bar = bar(console)
        self.row = self.bar.add_task("", total=None, measures="")
        self.drawn = 0.0

    def see(self, name: str, event: RunEvent | Failed) -> None:
        """Show `event` of the run called `name`."""
        if type(event) is Step:
            self.steps += 1
            now = time.monotonic()
            if now - self.drawn >= _INTERVAL and self.console.is_terminal:
                self.drawn = now
                right = event.accuracy()
                told = "" if right is None else f" accuracy {right:.1%}"
                measures = f"loss {float(event.loss):.3f}{told}"
                self.bar.update(self.row, completed=self.steps, measures=measures)
        elif isinstance(event, TaskStarted):
            self.steps = 0
            place = f"[{self.done + 1}/{self.runs}] " if self.runs > 1 else ""
            self.bar.reset(self.row, total=event.steps, description=f"{place}{name}, {event.task.name}", measures="")
        elif isinstance(event, Evaluated) and event.learned:
            seen = event.accuracy[: event.learned]
            mean = sum(seen) / len(seen)
            if self.runs == 1 or not self.console.is_terminal:
                self._say(f"{name}: after task {event.learned} accuracy {mean:.1%} on the tasks so far")
        elif isinstance(event, Finished):
            self.done += 1
            if self.runs > 1:
                self._say(f"{name}: {event.result['average_accuracy']:.1%} ({self.done} of {self.runs} runs)")
        elif isinstance(event, Failed):
            self.done += 1
            self._say(f"{name}: failed, {event.reason}")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def watching(runs: int) -> Iterator[Watcher]:
    """Yield a `Watcher` on standard error whose bar goes away at the end."""
    watcher = Watcher(Console(stderr=True), runs)
    with told_above(watcher.bar):
        yield watcher
