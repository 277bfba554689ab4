"""How many tasks of Omniglot are drawn a second, 32 at a time.

    python benchmarks/episodes.py [--rounds 5] [--threads 1] [--json]

Random pictures in as many classes and samples as Omniglot's training characters have, turned ones among them; medians
over rounds of a second each.
"""

from __future__ import annotations

import json
import time
from statistics import median

import torch
from loop import options

from lifelong.meta import FewShot
from lifelong.meta.episodes import ClassPool

CLASSES, SAMPLES, BATCH = 4400, 20, 32
# Ways, shots, queries.
CELLS = [(5, 1, 1), (20, 1, 1), (5, 5, 15)]


def main() -> None:
    arguments = options(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    counts = torch.full((CLASSES,), SAMPLES)
    pictures = torch.randint(256, (CLASSES * SAMPLES, 1, 28, 28), dtype=torch.uint8)
    pool = ClassPool(pictures, counts.cumsum(0) - counts, counts, tuple(map(str, range(CLASSES))))
    rows = []
    for ways, shots, queries in CELLS:
        source = FewShot(pool, ways, shots, queries, inverted=True)
        rate = median(tasks_a_second(source) for _ in range(arguments.rounds))
        rows.append({"ways": ways, "shots": shots, "queries": queries, "tasks_a_second": rate})
        if not arguments.json:
            print(f"{ways}-way {shots}-shot, {queries} queries: {rate:,.0f} tasks a second", flush=True)
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "threads": arguments.threads, "rows": rows}))


def tasks_a_second(source: FewShot) -> float:
    generator, drawn, begun = torch.Generator().manual_seed(0), 0, time.perf_counter()
    while time.perf_counter() - begun < 1:
        drawn += len(source.draw(BATCH, generator))
    return drawn / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
