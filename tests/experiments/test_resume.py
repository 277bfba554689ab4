"""`kill -9` at random moments: what is resumed ends in the bits of what was never interrupted."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from lifelong.cli import main

TASKS, STEPS = 3, 150
SETTINGS = [
    *("--stream", "permuted-digits", "--tasks", str(TASKS), "--steps", str(STEPS), "--batch-size", "16"),
    *("--model.hidden", "32,32", "--model.dropout", "0.2", "--schedule", "cosine", "--train-samples", "200"),
    *("--threads", "1", "--device", "cpu", "--checkpoint-every", "5"),
]
# The share of all steps after which a run is killed; with the random wait on top, any moment of a step may be hit.
LEAST, MOST = 0.2, 0.7


def start(command: str, out: Path, *words: str) -> BaseProcess:
    """Start the command in a process of its own, forked from one that has the imports behind it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lifelong.api", "lifelong.data", "lifelong.reports", "sklearn.datasets"])
    process = context.Process(target=main, args=([command, *SETTINGS, "--out", str(out), *words],))
    process.start()
    return process


def position(out: Path) -> int:
    """The position of the newest checkpoint in or below `out`, counted over all runs there."""
    newest: dict[str, int] = {}
    for folder, _, _ in os.walk(out):  # unlike glob it does not mind folders that vanish under it
        run, name = os.path.split(folder)
        if name.isdigit():
            newest[run] = max(newest.get(run, 0), int(name))
    return sum(newest.values())


def wait_for(out: Path, steps: int, alive: Callable[[], bool]) -> None:
    """Return once a checkpoint of `steps` is there: progress, and not time, so a loaded machine moves nothing."""
    deadline = time.monotonic() + 60
    while position(out) < steps:
        assert alive(), "it ended before its time"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def kill_at(process: BaseProcess, out: Path, steps: int, wait: float) -> None:
    """Kill `process` a moment of `wait` seconds after the checkpoint of `steps`."""
    try:
        wait_for(out, steps, process.is_alive)
        time.sleep(wait)
    finally:
        process.kill()
        process.join(60)
    assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"


def same(whole: Path, broken: Path) -> None:
    results = sorted(path.relative_to(whole) for path in whole.rglob("result.json"))
    assert results
    assert results == sorted(path.relative_to(broken) for path in broken.rglob("result.json"))
    for path in results:
        ours, theirs = (json.loads((each / path).read_text()) for each in (whole, broken))
        assert ours["accuracy"] == theirs["accuracy"]
        weights = [(each / path).with_name("model.safetensors").read_bytes() for each in (whole, broken)]
        assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("method", "kills", "more"),
    [
        ("si", 2, ["--keep-optimizer"]),
        ("rwalk", 2, ["--keep-optimizer", "--optimizer", "sgd", "--optimizer.momentum", "0.9", "--lr", "0.05"]),
        ("lwf", 1, ["--clip", "1"]),
        ("joint", 1, ["--validation", "0.2", "--early-stopping", "2"]),
    ],
)
def test_killed_and_resumed_gives_the_same_bits(method: str, kills: int, more: list[str], tmp_path: Path) -> None:
    words = ["--method", method, *more]
    assert main(["run", *SETTINGS, *words, "--out", str(tmp_path / "whole")]) == 0
    total = position(tmp_path / "whole")
    assert total > STEPS
    moments = random.Random(method)
    broken = tmp_path / "broken"
    for share in sorted(moments.uniform(LEAST, MOST) for _ in range(kills)):
        resume = ["--resume"] if broken.exists() else []
        before = position(broken)
        process = start("run", broken, *words, *resume)
        kill_at(process, broken, max(before + 5, int(share * total)), moments.uniform(0, 0.01))
        assert not (broken / "result.json").exists()
    assert main(["run", *SETTINGS, *words, "--out", str(broken), "--resume"]) == 0
    same(tmp_path / "whole", broken)


def test_a_killed_comparison_goes_on_by_itself(tmp_path: Path) -> None:
    words = ["--methods", "si,rwalk", "--keep-optimizer"]
    assert main(["compare", *SETTINGS, *words, "--out", str(tmp_path / "whole")]) == 0
    broken = tmp_path / "broken"
    process = start("compare", broken, *words)
    # In the second run, so that one is finished and one is half done.
    steps = int(position(tmp_path / "whole") * random.Random(0).uniform(0.55, 0.8))
    kill_at(process, broken, steps, 0.0)
    finished = broken / "si" / "seed-0" / "result.json"
    made = finished.stat().st_mtime_ns
    assert not (broken / "rwalk" / "seed-0" / "result.json").exists()
    assert main(["compare", *SETTINGS, *words, "--out", str(broken)]) == 0
    assert finished.stat().st_mtime_ns == made
    same(tmp_path / "whole", broken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_says_how_to_go_on_and_goes_on_to_the_same_bits(tmp_path: Path, number: signal.Signals) -> None:
    # So long that the signal, sent at a fiftieth of it, arrives in time.
    words = ["--method", "ewc", "--steps", "1000", "--checkpoint-every", "20"]
    assert main(["run", *SETTINGS, *words, "--out", str(tmp_path / "whole")]) == 0
    broken = tmp_path / "broken"
    # A shell starts what runs behind it with interrupts ignored, and so would this test's process be started there.
    foreground = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    line = [sys.executable, "-c", f"{foreground}from lifelong.cli import entry; entry()", "run", *SETTINGS, *words]
    process = subprocess.Popen([*line, "--out", str(broken)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(broken, 60, lambda: process.poll() is None)
        process.send_signal(number)
        shown, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, shown) == (130, "")
    assert "Traceback" not in errors
    said = [line for line in errors.splitlines() if ": after task" not in line]
    assert len(said) == 1, errors
    assert "interrupted" in said[0]
    assert said[0].endswith("--resume")
    # What it says is what goes on, to the letter.
    again = said[0].partition("go on with: lifelong ")[2].split()
    assert main(again) == 0
    same(tmp_path / "whole", broken)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    words = ["run", *SETTINGS, "--out", str(tmp_path / "out")]
    assert main(words) == 0
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.*")}
    assert main([*words, "--resume"]) == 0
    after = {path: path.stat().st_mtime_ns for path in made}
    assert after == made
