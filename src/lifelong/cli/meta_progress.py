"""What is seen while meta-training goes on: a bar with tasks a second on a terminal, some lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from lifelong.cli.progress import bar, told_above
from lifelong.experiments.meta_recipe import MetaRecipe
from lifelong.experiments.meta_run import MetaRunEvent, Started
from lifelong.training.meta_loop import Iteration, Validated, ValidationDiverged

_INTERVAL = 0.2


class MetaWatcher:
    """Draws events; one for a whole command, however many trainings it makes."""

    def __init__(self, console: Console, runs: int) -> None:
        self.console = console
        self.runs = runs
        self.bar = bar(console)
        self.row = self.bar.add_task("", total=None, measures="")
        self.drawn = self.began = 0.0
        self.first = self.number = 0

    def see(self, name: str, recipe: MetaRecipe, event: MetaRunEvent) -> None:
        """Show `event` of the training called `name`."""
        if isinstance(event, Iteration):
            now = time.monotonic()
            if now - self.drawn >= _INTERVAL and self.console.is_terminal:
                self.drawn = now
                speed = (event.iteration - self.first) * recipe.tasks / max(now - self.began, 1e-9)
                measures = f"loss {event.loss:.3f} score {event.score:.3f}, {speed:.0f} tasks/s"
                self.bar.update(self.row, completed=event.iteration, measures=measures)
        elif isinstance(event, Started):
            self.number += 1
            place = f"[{self.number}/{self.runs}] " if self.runs > 1 else ""
            self.began, self.first = time.monotonic(), event.iteration
            self.bar.reset(self.row, total=recipe.iterations, description=f"{place}{name}", measures="")
            how = event.engine
            self._say(
                f"{name}: {how.formulation}, {how.tasks_at_once} of {recipe.tasks} tasks at once, threads {how.threads}"
            )
        elif isinstance(event, Validated):
            found = event.found
            best = ", the best so far" if event.best else ""
            speed = (event.iteration - self.first) * recipe.tasks / max(time.monotonic() - self.began, 1e-9)
            self._say(
                f"{name}: iteration {event.iteration}, validation {found.score[0]:.4f} before and "
                f"{found.score[-1]:.4f} after {len(found.score) - 1} steps{best} ({speed:.0f} tasks/s)"
            )
        elif isinstance(event, ValidationDiverged):
            self._say(f"{name}: iteration {event.iteration}, validation diverged, and training goes on: {event.reason}")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def watching(runs: int) -> Iterator[MetaWatcher]:
    """Yield a `MetaWatcher` on standard error whose bar goes away at the end."""
    watcher = MetaWatcher(Console(stderr=True), runs)
    with told_above(watcher.bar):
        yield watcher
