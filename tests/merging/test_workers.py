"""Merging on several processes: the same bytes, and no process that outlives its merge."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merging.models import read, tensors, write

from lifelong.errors import InputError, LifelongError
from lifelong.merging import engine, planning, work
from lifelong.merging.plan import Plan
from lifelong.merging.recipe import parsed
from lifelong.merging.rule import BLOCK
from lifelong.merging.workers import can_fork, spread

pytestmark = pytest.mark.skipif(not can_fork(), reason="processes are forks, for which this system has no safe way")

# Rules without a survey, with one that finds numbers or arrays, and with one of the whole model.
CASES: dict[str, dict[str, Any]] = {
    "linear": {},
    "slerp": {"t": 0.3},
    "ties": {"density": 0.2},
    "ties over the model": {"density": 0.2, "trim": "model"},
    "dare_ties": {"density": 0.3, "rescale_norm": "l1"},
    "della": {"density": 0.5},
    "model_stock": {"filter_wise": True},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two experts; two tensors are of more than two blocks."""
    folder = tmp_path_factory.mktemp("models")
    base = tensors(0, rows=12_000)
    assert base["lm_head.weight"].size > 2 * BLOCK
    write(folder / "base", base)
    for seed, name in enumerate("ab", start=1):
        write(folder / name, tensors(seed, base, rows=12_000))
    return folder


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes even for little, and parts of a block."""
    monkeypatch.setattr(engine, "_WORTH_FORKS", 0)
    monkeypatch.setattr(work, "PART", BLOCK)
    monkeypatch.setattr(work, "_WHOLE", BLOCK)


def planned(models: Path, rule: str, parameters: dict[str, Any], **more: Any) -> Plan:
    rule = rule.partition(" ")[0]
    experts = [{"model": name} for name in ("a" if rule == "slerp" else "ab")]
    values = {"merge_method": rule, "base_model": "base", "models": experts, "parameters": parameters, **more}
    return planning.plan(parsed(values), models)


def run(plan: Plan, out: Path, **settings: Any) -> list[engine.Finished]:
    return list(engine.merge(plan, out, **{"shard_bytes": 10**9, **settings}))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("name", CASES)
def test_processes_change_no_byte(name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(planned(models, name, CASES[name]), tmp_path / "forks", threads=3)
    assert sorted(each.done for each in done) == list(range(1, len(done) + 1))
    monkeypatch.undo()
    run(planned(models, name, CASES[name]), tmp_path / "one", threads=1)
    assert contents(tmp_path / "forks") == contents(tmp_path / "one")


@pytest.mark.usefixtures("forked")
def test_what_is_wrong_in_a_process_is_said_here(models: Path, tmp_path: Path) -> None:
    values = read(models / "a")
    values["lm_head.weight"] = values["lm_head.weight"].copy()
    values["lm_head.weight"][-1, -1] = np.nan
    write(tmp_path / "a", values)
    for other in ("base", "b"):
        (tmp_path / other).symlink_to(models / other)
    with pytest.raises(InputError, match=r"1 tensors hold NaN or infinities.*a: lm_head.weight \(1 of 288000\)"):
        run(planned(tmp_path, "ties", {"density": 0.2}), tmp_path / "out", threads=2)
    assert not (tmp_path / "out.partial").exists()
    with pytest.raises(InputError, match="does not fit F16"):
        run(planned(models, "task_arithmetic", {"weight": 1e6}, out_dtype="float16"), tmp_path / "out", threads=2)


@pytest.mark.usefixtures("forked")
def test_a_process_that_the_system_ends_is_named_and_the_merge_resumes(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, here, real = planned(models, "linear", {}), os.getpid(), work.Work.do

    def killed(self: work.Work, task: work.Task) -> work.Done:
        if plan.jobs[task.job].name == "lm_head.weight" and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, task)

    monkeypatch.setattr(work.Work, "do", killed)
    with pytest.raises(LifelongError, match=r"the system ended a process of the merge.*--threads"):
        run(plan, tmp_path / "out", threads=2)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(work.Work, "do", real)
    run(plan, tmp_path / "out", threads=2, resume=True)
    run(plan, tmp_path / "whole", threads=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_results_come_in_the_order_of_the_items() -> None:
    # Neither the function nor what it knows could be sent to another process.
    secret = {"offset": 7, "unsent": lambda: None}
    assert spread(lambda item: item + secret["offset"], range(50), 3, forks=True) == list(range(7, 57))
    assert len(set(spread(lambda _: os.getpid(), range(8), 1, forks=True)) - {os.getpid()}) == 1
    assert spread(str, [], 2, forks=True) == []


@pytest.mark.usefixtures("forked")
def test_a_process_that_may_have_no_children_merges_in_threads(models: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    plan = planned(models, "ties", {"density": 0.2})
    alone = context.Process(target=run, args=(plan, tmp_path / "out"), kwargs={"threads": 2}, daemon=True)
    alone.start()
    alone.join()
    assert alone.exitcode == 0
    run(plan, tmp_path / "forks", threads=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "forks")


def test_an_error_of_one_item_ends_the_others() -> None:
    with pytest.raises(ZeroDivisionError):
        spread(lambda item: 1 // item, [1, 1, 0, 1], 2, forks=True)


ALIVE = """
import os, time
from lifelong.merging.workers import workers

def say_and_sleep(seconds):
    os.write(1, f'{os.getpid()}\\n'.encode())
    time.sleep(seconds)

with workers(say_and_sleep, 2, forks=True) as hand:
    for future in [hand(600), hand(600)]:
        future.result()
"""


def running(process: int) -> bool:
    """Return whether a process is there, and not only its exit status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within_seconds(wanted: Any) -> bool:
    limit = time.monotonic() + 20
    while not wanted() and time.monotonic() < limit:
        time.sleep(0.001)
    return bool(wanted())


def test_workers_end_with_a_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", ALIVE], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            children = [int(parent.stdout.readline()) for _ in range(2)]
            assert all(running(each) for each in children)
        finally:
            parent.kill()
    assert within_seconds(lambda: not any(running(each) for each in children))


def test_an_interrupt_from_the_terminal_says_one_line_and_resumes(tmp_path: Path) -> None:
    base = tensors(0, rows=80_000)
    for seed, name in enumerate(("base", "a", "b")):
        write(tmp_path / name, tensors(seed, base, rows=80_000))
    # So many experts that it is not done before it is interrupted.
    experts = ["a", "b"] * 8
    # A shell starts what runs behind it with interrupts ignored, and so would this test's process be started there.
    foreground = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    line = [sys.executable, "-c", f"{foreground}from lifelong.cli import entry; entry()", "merge", "--rule", "ties"]
    line += ["--base", "base", *experts, "--threads", "2", "--rule.density", "0.2"]
    # On a busy machine this process may wake up too late to interrupt it.
    for out in ("0", "1", "2", "3"):
        begun = subprocess.Popen(
            [*line, "--out", out], stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
        )
        assert within_seconds((tmp_path / f"{out}.partial" / engine.JOURNAL).exists)
        # To the whole group, as a terminal does.
        os.killpg(begun.pid, signal.SIGINT)
        _, said = begun.communicate(timeout=60)
        if begun.returncode:
            break
    assert begun.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert within_seconds(lambda: not (tmp_path / f"{out}.partial.lock").exists())
    for folder, more in ((out, ["--resume"]), ("whole", [])):
        subprocess.run([*line, "--out", folder, *more], check=True, stdout=subprocess.DEVNULL, cwd=tmp_path)
    assert contents(tmp_path / out) == contents(tmp_path / "whole")
