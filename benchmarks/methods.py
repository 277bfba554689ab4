"""Seconds a step of every other family against the bare loop of `benchmarks/loop.py`, at task 2 and at task 10.

    python benchmarks/methods.py [--quick] [--methods er,gem] [--threads 2] [--json]

Structural methods run with a head a task, methods for classes alone with a growing head, the rest domain-incremental.
"""

from __future__ import annotations

import argparse
import json

import loop
import torch

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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chunks, steps = (4, 8) if arguments.quick else (10, 20)
    data, rows = loop.training_data(), []
    for method in arguments.methods.split(","):
        for place in PLACES:
            ratio, ours, bare = loop.steps_of(method, place, HIDDEN, data, chunks, steps)
            goal = GOALS.get(method)
            if goal is not None and method == "gem":
                goal += 0.15 * (place - 1)
            row = {"measure": f"{method}, task {place}", "ratio": ratio, "goal": goal, "ms": ours, "bare_ms": bare}
            rows.append(row)
            loop.say(row, arguments.json)
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "threads": arguments.threads, "rows": rows}))


if __name__ == "__main__":
    main()
