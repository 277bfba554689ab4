"""`kill -9` at random moments: what is resumed ends in the bits of what was never interrupted."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SETTINGS = [
    *("--stream", "permuted-digits", "--tasks", "3", "--epochs", "12", "--batch-size", "16", "--threads", "1"),
    *("--model.hidden", "64,64", "--model.dropout", "0.2", "--schedule", "cosine", "--checkpoint-every", "40"),
]


def start(method: str, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from lifelong.cli import entry; entry()", "run", "--method", method]
    words = [*command, *SETTINGS, "--out", str(out), *more]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def newest(out: Path) -> int:
    """The position of the newest checkpoint, 0 where there is none yet."""
    return max((int(each.name) for each in (out / "checkpoints").glob("[0-9]*")), default=0)


@pytest.mark.parametrize(("method", "more"), [("si", []), ("rwalk", ["--keep-optimizer"]), ("lwf", []), ("joint", [])])
def test_killed_and_resumed_gives_the_same_bits(method: str, more: list[str], tmp_path: Path) -> None:
    finish(start(method, tmp_path / "whole", *more))
    steps = newest(tmp_path / "whole")
    moments = random.Random(method)
    for share in (moments.uniform(0.05, 0.4), moments.uniform(0.5, 0.9)):
        resume = ["--resume"] if (tmp_path / "broken").exists() else []
        process = start(method, tmp_path / "broken", *more, *resume)
        while newest(tmp_path / "broken") < share * steps:
            time.sleep(0.002)
            assert process.poll() is None, "the run ended before it was killed"
        time.sleep(moments.uniform(0, 0.05))  # anywhere between two checkpoints, or within the next
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finish(start(method, tmp_path / "broken", *more, "--resume"))
    results = [json.loads((tmp_path / each / "result.json").read_text()) for each in ("whole", "broken")]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    weights = [(tmp_path / each / "model.safetensors").read_bytes() for each in ("whole", "broken")]
    assert weights[0] == weights[1]


def test_interrupted_says_how_to_go_on(tmp_path: Path) -> None:
    process = start("ewc", tmp_path / "run", "--epochs", "200")
    while not (tmp_path / "run" / "checkpoints").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    last = errors.decode().strip().splitlines()[-1]
    assert "interrupted" in last
    assert last.endswith("--resume")
