"""Cost of a step of every other family against the bare loop of `benchmarks/loop.py`, at task 2 and at task 10.

    python benchmarks/methods.py [--quick] [--methods er,gem] [--threads 1] [--json]

Structural methods run with a head a task, methods for classes alone with a growing head, the rest domain-incremental.
The floor is a bare loop too, but with as many samples in forward and backward passes as the method asks for by its
definition: what lies between floor and ratio is ours. With one thread, time is that of the processor, so that what else
a machine does counts for little; with more it is that of the clock.
"""

from __future__ import annotations

import argparse
import json
import time

import loop
import torch
from loop import BATCH, Work

from lifelong.methods import METHODS

GOALS = {
    "er": 2.2,
    "derpp": 2.2,
    "gem": 2.0,  # and 0.15 for each past task
    "a-gem": 2.3,
    "packnet": 1.25,
    "piggyback": 1.25,
    "hat": 1.25,
    "lwf": 1.6,
}
PLACES = (2, 10)
HIDDEN = (1024, 512, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument(
        "--methods", default=",".join(name for name in METHODS if name not in ("joint", "scp", "rwalk"))
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    chunks, steps = (4, 8) if arguments.quick else (10, 20)
    data, rows = loop.training_data(), []
    for method in arguments.methods.split(","):
        for place in PLACES:
            found = loop.steps_of(method, place, HIDDEN, data, chunks, steps, work(method, place), clock)
            goal = GOALS.get(method)
            if goal is not None and method == "gem":
                goal += 0.15 * (place - 1)
            row = {"measure": f"{method}, task {place}", "goal": goal, **found}
            rows.append(row)
            loop.say(row, arguments.json)
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "threads": arguments.threads, "rows": rows}))


def work(method: str, place: int) -> Work:
    """Return what a step of `method`, with its settings as they come, cannot do without at the task `place`."""
    match method:
        case "er" | "er-ace" | "der":
            return Work(samples=2 * BATCH)
        case "derpp":
            return Work(samples=3 * BATCH)
        case "a-gem":
            return Work(beside=BATCH)
        case "gem":
            return Work(beside=METHODS["gem"]().memories * (place - 1))
        case "lwf" | "lwf-mc" | "lfl":
            return Work(forward=BATCH)
        case _:
            return Work()


if __name__ == "__main__":
    main()
