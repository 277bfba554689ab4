"""What it saves to keep freed memory: seconds and page faults of work on the CPU, with and without.

    python benchmarks/allocator.py [--rounds 5] [--threads 2] [--json]

Each side has a process of its own, as what the C library is asked for holds until a process ends; the two alternate,
and a ratio is the median over rounds. Systems whose C library is not glibc show no difference.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from unittest import mock

import torch
from loop import options, ratio
from meta import SIDES, Cell

from lifelong import models
from lifelong.allocator import keep_freed_memory
from lifelong.meta import Engine

REPEATS = 5
Work = Callable[[], object]


def evaluation(threads: int) -> Work:
    """Answers of the default convolutional network to a thousand pictures of CIFAR-10's size."""
    trunk, inputs = models.trunk("convnet", {}, (3, 32, 32), 0), torch.rand(1000, 3, 32, 32)
    return torch.no_grad()(lambda: trunk(inputs))


def training(threads: int) -> Work:
    """Gradients of the same network for a mini-batch of 128."""
    trunk, inputs = models.trunk("convnet", {}, (3, 32, 32), 0), torch.rand(128, 3, 32, 32)

    def step() -> None:
        trunk(inputs).square().mean().backward()

    return step


def maml(threads: int) -> Work:
    """A second-order meta-iteration of Omniglot, 5 ways and 1 shot, 32 tasks."""
    return SIDES["ours"](Cell("strided", 5, 1, True), Engine("grouped", 8, threads))


WORKS = {"evaluation": evaluation, "training": training, "maml": maml}


def main() -> None:
    arguments = options(__doc__).parse_args()
    rows = []
    for name in WORKS:
        sides: tuple[list[tuple[float, int]], ...] = ([], [])
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
            for _ in range(arguments.rounds):
                for keep, found in enumerate(sides):
                    found.append(pool.submit(measured, name, bool(keep), arguments.threads).result())
        (without, without_faults), (kept, kept_faults) = (zip(*found, strict=True) for found in sides)
        rows.append(
            {
                "work": name,
                "ratio": ratio(kept, without),
                "ms": (1e3 * median(kept), 1e3 * median(without)),
                "faults": (median(kept_faults), median(without_faults)),
            }
        )
        if not arguments.json:
            (ours, theirs), (few, many) = rows[-1]["ms"], rows[-1]["faults"]
            print(
                f"{name:<14} {rows[-1]['ratio']:.2f} of the time: {ours:.1f} ms with {few:.0f} page faults, "
                f"{theirs:.1f} ms with {many:.0f}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "threads": arguments.threads, "rows": rows}))


def measured(name: str, keep: bool, threads: int) -> tuple[float, int]:
    """Return seconds and page faults of the work called `name`, after two runs that warm up."""
    torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()
    # What works on tasks side by side asks for it by itself.
    with mock.patch("lifelong.meta.engine.keep_freed_memory"):
        work = WORKS[name](threads)
        work(), work()
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        for _ in range(REPEATS):
            work()
    spent = (time.perf_counter() - begun) / REPEATS
    return spent, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // REPEATS


if __name__ == "__main__":
    main()
