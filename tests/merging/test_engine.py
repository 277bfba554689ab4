"""Merging on disk: the same numbers as in memory, and nothing half-written under the final name."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merging.models import read, tensors, write

from lifelong.errors import InputError, StateError
from lifelong.merging import engine, planning
from lifelong.merging.formats import DTYPES
from lifelong.merging.plan import Plan
from lifelong.merging.recipe import parsed
from lifelong.merging.rules import RULES

RULE_NAMES = ["linear", "task_arithmetic", "ties", "magmax"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of three shards, two experts of one and two shards; one tensor is larger than a block."""
    folder = tmp_path_factory.mktemp("models")
    base = tensors(0, rows=5600)
    write(folder / "base", base, shards=3)
    write(folder / "a", tensors(1, base, rows=5600))
    write(folder / "b", tensors(2, base, rows=5600), shards=2)
    return folder


def planned(models: Path, rule: str = "ties", **more: Any) -> Plan:
    # Trimming surveys every tensor before it is merged.
    shared = {"parameters": {"density": 0.2}} if rule == "ties" else {}
    values = {"merge_method": rule, "base_model": "base", "models": [{"model": "a"}, {"model": "b"}], **shared, **more}
    return planning.plan(parsed(values), models)


def run(plan: Plan, out: Path, **settings: Any) -> list[engine.Finished]:
    return list(engine.merge(plan, out, **{"shard_bytes": 10**9, **settings}))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_streamed_is_in_memory(rule: str, models: Path, tmp_path: Path) -> None:
    run(planned(models, rule), tmp_path / "out")
    base, experts, merged = read(models / "base"), [read(models / name) for name in "ab"], read(tmp_path / "out")
    assert merged.keys() == base.keys()
    for name, each in merged.items():
        merge = RULES[rule](**({"density": 0.2} if rule == "ties" else {}))
        np.testing.assert_array_equal(each, merge(base[name], [expert[name] for expert in experts], name))


def test_threads_and_shards_change_no_number(models: Path, tmp_path: Path) -> None:
    run(planned(models), tmp_path / "one", threads=1)
    run(planned(models), tmp_path / "many", threads=5, shard_bytes=20_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 3
    one, many = read(tmp_path / "one"), read(tmp_path / "many")
    for name in one:
        np.testing.assert_array_equal(one[name], many[name])


def test_the_reference_library_reads_the_result(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run(planned(models), tmp_path / "out")
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: tuple(each.shape) for name, each in loaded.items()} == {
        name: each.shape for name, each in read(models / "base").items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_format_of_the_result(dtype: str, models: Path, tmp_path: Path) -> None:
    run(planned(models, "linear", out_dtype=dtype), tmp_path / "out")
    merged = read(tmp_path / "out")["model.norm.weight"]
    exact = np.mean([read(models / name)["model.norm.weight"].astype(float) for name in "ab"], axis=0)
    assert merged.dtype == np.dtype(dtype if dtype != "bfloat16" else DTYPES["BF16"])
    np.testing.assert_array_equal(merged, exact.astype(np.float32).astype(merged.dtype))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype


def test_the_manifest_says_what_went_in_and_came_out(models: Path, tmp_path: Path) -> None:
    run(planned(models), tmp_path / "one")
    run(planned(models), tmp_path / "two", threads=3, shard_bytes=20_000)
    one, two = (json.loads((tmp_path / name / engine.MANIFEST).read_text()) for name in ("one", "two"))
    assert one == two
    assert one["recipe"]["merge_method"] == "ties"
    name = "model.norm.weight"
    changed = tmp_path / "changed"
    values = read(models / "a")
    values[name] = values[name] + np.ones_like(values[name])
    write(changed / "a", values)
    for other in ("base", "b"):
        (changed / other).symlink_to(models / other)
    run(planned(changed), tmp_path / "three")
    three = json.loads((tmp_path / "three" / engine.MANIFEST).read_text())
    differ = {key for key, each in three["tensors"].items() if each["sources"] != one["tensors"][key]["sources"]}
    assert differ == {name}
    assert three["tensors"][name]["sources"]["b"] == one["tensors"][name]["sources"]["b"]


def test_a_folder_that_exists_is_left_alone(models: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists"):
        run(planned(models), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_all_named(value: float, models: Path, tmp_path: Path) -> None:
    values = read(models / "a")
    for name, count in {"model.layers.2.norm.weight": 2, "lm_head.weight": 3}.items():
        values[name] = values[name].copy()
        values[name].reshape(-1)[-count:] = value
    write(tmp_path / "a", values)
    for other in ("base", "b"):
        (tmp_path / other).symlink_to(models / other)
    with pytest.raises(InputError) as caught:
        run(planned(tmp_path), tmp_path / "out")
    said = str(caught.value)
    assert said.startswith("2 tensors")
    assert "a: model.layers.2.norm.weight (2 of 24)" in said
    assert "a: lm_head.weight (3 of 134400)" in said
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()
    with np.errstate(invalid="ignore"):
        run(planned(tmp_path, "linear"), tmp_path / "out", allow_nonfinite=True)
    assert not np.isfinite(read(tmp_path / "out")["lm_head.weight"].astype(float)).all()


def test_a_result_too_large_for_its_format(models: Path, tmp_path: Path) -> None:
    plan = planned(models, "task_arithmetic", parameters={"weight": 1e6}, out_dtype="float16")
    with pytest.raises(InputError, match=r"does not fit F16.*out_dtype"):
        run(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_known_before_work_starts(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match="no room"):
        run(planned(models), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    run(planned(models), tmp_path / "out", resume=True)
    assert read(tmp_path / "out").keys() == read(models / "base").keys()


def test_a_write_error_leaves_nothing_under_the_name_and_resumes(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(10**6))
    real = os.pwrite

    def failing(descriptor: int, data: Any, place: int) -> int:
        if next(calls) == 6:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, data, place)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(OSError, match="Input/output error"):
        run(planned(models), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    done = run(planned(models), tmp_path / "out", resume=True)
    assert 0 < len(done) < len(planned(models).jobs)
    run(planned(models), tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_short_writes_are_finished(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(planned(models), tmp_path / "whole")
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, place: real(fd, data[: max(1, len(data) // 3)], place))
    run(planned(models), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_is_left_of_a_merge_is_not_taken_for_another(models: Path, tmp_path: Path) -> None:
    running = engine.merge(planned(models), tmp_path / "out", shard_bytes=10**9)
    next(running)
    running.close()
    with pytest.raises(InputError, match="--resume"):
        run(planned(models), tmp_path / "out")
    with pytest.raises(StateError, match="another recipe"):
        run(planned(models, "magmax"), tmp_path / "out", resume=True)
    run(planned(models), tmp_path / "out", resume=True)


def test_bytes_that_changed_after_they_were_journaled_are_made_again(models: Path, tmp_path: Path) -> None:
    run(planned(models), tmp_path / "whole")
    running = engine.merge(planned(models), tmp_path / "out", shard_bytes=10**9, threads=1)
    finished = next(running)
    running.close()
    weights = tmp_path / "out.partial" / "model.safetensors"
    place = read_place(weights, finished.name)
    data = bytearray(weights.read_bytes())
    data[place] ^= 0xFF
    weights.write_bytes(data)
    run(planned(models), tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def read_place(path: Path, name: str) -> int:
    from lifelong.merging import safetensors

    return safetensors.read(path).entries[name].start


def test_two_processes_do_not_share_a_folder(models: Path, tmp_path: Path) -> None:
    running = engine.merge(planned(models), tmp_path / "out", shard_bytes=10**9)
    next(running)
    with pytest.raises(InputError, match="another process"):
        run(planned(models), tmp_path / "out", resume=True)
    assert len(list(running)) == len(planned(models).jobs) - 1


def finished(journal: Path) -> int:
    """Return of how many tensors a journal speaks."""
    return journal.read_text().count('"name"') if journal.exists() else 0


def test_killed_at_fifty_moments_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    base = tensors(0, rows=60_000)
    for index, name in enumerate(("base", "a", "b")):
        write(tmp_path / name, base if name == "base" else tensors(index, base, rows=60_000))
    plan = planned(tmp_path)
    line = [sys.executable, "-m", "lifelong", "merge", "--rule", "ties", "--base", "base", "a", "b", "--resume"]
    line += ["--rule.density", "0.2"]
    subprocess.run([*line, "--out", "whole"], check=True, stdout=subprocess.DEVNULL, cwd=tmp_path)
    drawn = random.Random(0)
    halfway = 0
    for index in range(50):
        out = tmp_path / f"out-{index % 5}"
        journal = tmp_path / f"{out.name}.partial" / engine.JOURNAL
        before = finished(journal)
        process = subprocess.Popen([*line, "--out", out.name], stdout=subprocess.DEVNULL, cwd=tmp_path)
        # Every other one between tensors; the rest at any time, which is mostly while the process starts.
        while index % 2 and process.poll() is None and finished(journal) <= before:
            time.sleep(0.001)
        time.sleep(drawn.uniform(0, 0.01 if index % 2 else 0.6))
        process.kill()
        process.wait()
        halfway += 0 < finished(journal) < len(plan.jobs)
        if out.exists():
            assert read(out).keys() == read(tmp_path / "whole").keys()
    assert halfway > 0
    for index in range(5):
        out = tmp_path / f"out-{index}"
        if not out.exists():
            run(plan, out, shard_bytes=5 * 10**9, resume=True)
        whole, resumed = read(tmp_path / "whole"), read(out)
        assert all(whole[name].tobytes() == resumed[name].tobytes() for name in whole)
