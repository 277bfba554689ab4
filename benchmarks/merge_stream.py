"""What merging costs along a stream of 50 tasks: memory of the method's state, and time of its work after each task.

    python benchmarks/merge_stream.py [--tasks 50] [--steps 50] [--methods magmax,opcm] [--json]

The tasks are Gaussian classes in other directions each, learned domain-incremental by one thread with batches of 128.
Times are those of the processor, so that what else a machine does counts for little. `share` is the work after all
tasks over that of training them; `flat` the median of the last five tasks over that of tasks 2 to 6.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lifelong import models
from lifelong.learner import Learner
from lifelong.methods import METHODS, Method, build
from lifelong.models import with_head
from lifelong.streams import Scenario, Stream
from lifelong.streams.task import Split, Task
from lifelong.training import loop, state
from lifelong.training.loop import Schedule, StepsDone, TaskDone, TaskStarted
from lifelong.training.optimizers import make_optimizer

WIDTH, CLASSES, BATCH, HIDDEN = 256, 10, 128, (512, 512)
CONSTANT = [name for name, kind in METHODS.items() if kind.family == "merging" and not kind.grows]
# With their settings, where they are not the method's own.
SETTINGS: dict[str, dict[str, Any]] = {"merge fisher": {"rule": "fisher"}, "merge regmean": {"rule": "regmean"}}
LINE = (
    "{method}: kept {kept_2:,} bytes after task 2, {kept_last:,} after the last; after a task {after_early:.1f} ms "
    "early, {after_late:.1f} ms late (flat {flat:.2f}); share of training {share:.2%}"
)


@dataclass(frozen=True)
class Cost:
    """Of one task: seconds of its steps and of the work after them, bytes that the method keeps then."""

    train: float
    after: float
    kept: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--steps", type=int, default=50, help="of each task")
    parser.add_argument("--methods", default=",".join([*CONSTANT, *SETTINGS]))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tasks, rows = stream(arguments.tasks), []
    for name in arguments.methods.split(","):
        method = build(name.partition(" ")[0], SETTINGS.get(name, {}))
        rows.append(summary(name, costs(method, tasks, arguments.steps)))
        if not arguments.json:
            print(LINE.format(**rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "tasks": arguments.tasks, "rows": rows}))


def stream(tasks: int) -> Stream:
    """Return the synthetic stream; validation and test are not looked at."""
    made = []
    for index in range(tasks):
        drawn = torch.Generator().manual_seed(index)
        centres = torch.randn(CLASSES, WIDTH, generator=drawn)
        targets = torch.arange(1280) % CLASSES
        samples = Split(centres[targets] + 2 * torch.randn(len(targets), WIDTH, generator=drawn), targets)
        made.append(Task(index, f"task {index + 1}", samples, samples, samples, tuple(range(CLASSES))))
    names = tuple(map(str, range(CLASSES)))
    return Stream("synthetic", "Gaussian classes", Scenario.DOMAIN, tuple(made), names)


def costs(method: Method, tasks: Stream, steps: int) -> list[Cost]:
    """Return what each task cost."""
    trunk = models.trunk("mlp", {"hidden": HIDDEN}, (WIDTH,), 0)
    sample: Tensor = torch.zeros(2, WIDTH)
    network = with_head(trunk, "single", sample=sample, classes=(CLASSES,) * len(tasks), outputs=CLASSES)
    learner = Learner(network, make_optimizer("adam", 1e-4, {}), Scenario.DOMAIN, planned_tasks=len(tasks))
    found, began, trained = [], 0.0, 0.0
    for event in loop.train(learner, method, tasks, Schedule(BATCH, steps=steps)):
        now = time.process_time()
        if isinstance(event, TaskStarted):
            began = now
        elif isinstance(event, StepsDone):
            trained = now
        elif isinstance(event, TaskDone):
            found.append(Cost(trained - began, now - trained, state.method_bytes(method)))
    return found


def summary(name: str, found: list[Cost]) -> dict[str, Any]:
    """Return what the tables show, times in milliseconds."""
    early, late = (median(cost.after for cost in part) * 1000 for part in (found[1:6], found[-5:]))
    return {
        "method": name,
        "kept_2": found[1].kept,
        "kept_last": found[-1].kept,
        "after_early": early,
        "after_late": late,
        "flat": late / early,
        "share": sum(cost.after for cost in found) / sum(cost.train for cost in found),
    }


if __name__ == "__main__":
    main()
