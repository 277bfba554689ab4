"""What channels last saves a convolutional network on the CPU: answers and gradients, both layouts alternating.

    python benchmarks/layout.py [--rounds 5] [--threads 2] [--json]

The network is our `convnet` with and without the layer that lays images out; a ratio is the median over rounds. With
one thread, time is that of the processor.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from loop import options, ratio, seconds
from torch import nn

from lifelong import models
from lifelong.allocator import keep_freed_memory

CELLS: list[tuple[str, dict[str, Any], tuple[int, int, int], int]] = [
    ("pooled, 3 x 32 x 32", {}, (3, 32, 32), 128),
    ("pooled, 1 x 28 x 28", {}, (1, 28, 28), 128),
    ("pooled, 3 x 32 x 32, 10 at once", {}, (3, 32, 32), 10),
    ("strided, 3 x 32 x 32", {"halve": "stride"}, (3, 32, 32), 128),
    ("group norm, 3 x 32 x 32", {"norm": "group"}, (3, 32, 32), 128),
]


def main() -> None:
    arguments = options(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    rows = []
    for name, settings, shape, batch in CELLS:
        laid = models.trunk("convnet", settings, shape, 0)
        plain, images = nn.Sequential(*list(laid)[1:]), torch.rand(batch, *shape)
        for kind, work in (("answers", answers), ("gradients", gradients)):
            sides = [work(each, images) for each in (laid, plain)]
            ours, theirs = seconds(sides, arguments.rounds, clock)
            rows.append({"cell": name, "work": kind, "ratio": ratio(ours, theirs), "ms": 1e3 * median(ours)})
            if not arguments.json:
                print(f"{name:<34} {kind:<10} {rows[-1]['ratio']:.2f} of the time, {rows[-1]['ms']:.1f} ms", flush=True)
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "threads": arguments.threads, "rows": rows}))


def answers(trunk: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: trunk(images))


def gradients(trunk: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    def step() -> None:
        trunk.zero_grad(set_to_none=True)
        trunk(images).square().mean().backward()

    return step


if __name__ == "__main__":
    main()
