"""What it costs how threads wait for each other: seconds of training alone, and of two runs side by side.

    python benchmarks/threads.py [--rounds 3] [--hidden 100,100] [--epochs 10]

A network is trained on digits with two threads by `lifelong run`, by plain fine-tuning. OpenMP's threads spin for a
while before they sleep, which `GOMP_SPINCOUNT` counts; beside another run those that spin keep the cores from those
that work. Ways alternate in each round; the median counts, and what takes 40 seconds is stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

WAYS = {
    "as OpenMP does": {"GOMP_SPINCOUNT": "300000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "spin 5000": {"GOMP_SPINCOUNT": "5000"},
    "spin 2000": {"GOMP_SPINCOUNT": "2000"},
    "sleep at once": {"GOMP_SPINCOUNT": "0"},
    "one thread": {"THREADS": "1"},
}
MOST = 40.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", default="100,100")
    parser.add_argument("--epochs", default="10")
    arguments = parser.parse_args()
    found: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in WAYS}
    for _ in range(arguments.rounds):
        for way in WAYS:
            for runs, spent in zip((1, 2), found[way], strict=True):
                spent.extend(seconds(way, runs, arguments))
    for way, (alone, beside) in found.items():
        print(f"{way:<14} alone {median(alone):6.2f} s, beside another {median(beside):6.2f} s")


def seconds(way: str, runs: int, arguments: argparse.Namespace) -> list[float]:
    """Return the training time of each of so many `runs` at once; `MOST` where one was stopped."""
    environment = {**os.environ, **WAYS[way]}
    environment.pop("OMP_NUM_THREADS", None)
    words = f"run --stream permuted-digits --method naive --epochs {arguments.epochs} --json".split()
    words += ["--model.hidden", arguments.hidden, "--threads", WAYS[way].get("THREADS", "2")]
    with tempfile.TemporaryDirectory() as scratch:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "lifelong", *words, "--out", str(Path(scratch) / str(number))],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for number in range(runs)
        ]
        return [_train_seconds(each) for each in started]


def _train_seconds(run: subprocess.Popen[bytes]) -> float:
    try:
        output, _ = run.communicate(timeout=MOST)
    except subprocess.TimeoutExpired:
        run.kill()
        run.communicate()
        return MOST
    return float(json.loads(output)["seconds"]["train"])


if __name__ == "__main__":
    main()
