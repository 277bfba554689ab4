"""Checkpoints: whole or not at all, checked when read, the last good one kept."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong import files
from lifelong.errors import StateError
from lifelong.training import checkpoint, state


def save(folder: Path, *positions: int) -> None:
    for position in positions:
        checkpoint.save_checkpoint(folder, position, {"at": position}, {"w": torch.full((4,), float(position))})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(
            (name, each)
            for name in ("tensors.safetensors", "state.json")
            for each in (truncate, flip, empty, Path.unlink)
        ),
        *(("manifest.json", each) for each in (truncate, empty, Path.unlink)),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    save(tmp_path, 1, 2)
    damage(tmp_path / "0000000002" / name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = checkpoint.load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded[0] == {"at": 1}
    assert loaded[1]["w"].tolist() == [1.0] * 4
    assert len(caught) == 1
    assert name in str(caught[0].message)
    assert "going on from 0000000001" in str(caught[0].message)
    damage(tmp_path / "0000000001" / name)
    with pytest.raises(StateError, match="no good checkpoint is left") as error:
        checkpoint.load_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"state.json": 3, "tensors.safetensors": {}}', "{}"])
def test_a_manifest_of_another_form_is_a_damaged_one(content: str, tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "0000000002" / "manifest.json").write_text(content)
    with pytest.warns(UserWarning, match="0000000002"):
        loaded = checkpoint.load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded[0] == {"at": 1}


def test_the_newest_of_two_is_read_and_older_ones_go(tmp_path: Path) -> None:
    assert checkpoint.load_checkpoint(tmp_path / "none") is None
    save(tmp_path, 9, 10, 11, 100000)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["0000000011", "0000100000"]
    loaded = checkpoint.load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded[0] == {"at": 100000}


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_half_written(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert len(calls) == call
    assert [each.name for each in tmp_path.iterdir()] == ["0000000001"]
    loaded = checkpoint.load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded[0] == {"at": 1}


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    files.write_json(path, {"old": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"new": 1})
    assert path.read_text() == '{\n "old": 1\n}'
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"new": float("nan")})
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_views_and_shared_tensors_are_kept_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    checkpoint.save_checkpoint(tmp_path, 1, {}, {"a": base, "b": base.t(), "c": base[1]})
    loaded = checkpoint.load_checkpoint(tmp_path)
    assert loaded is not None
    assert torch.equal(loaded[1]["b"], base.t())
    assert torch.equal(loaded[1]["c"], base[1])


def test_state_comes_back_as_it_was() -> None:
    tensors: dict[str, torch.Tensor] = {}
    value: dict[str, Any] = {
        "list": [1, 2.5, None, True],
        "name": "x",
        "inner": {"t": torch.ones(2), "of": [torch.zeros(1)]},
    }
    saved = state.capture(value, "method", tensors)
    assert sorted(tensors) == ["method.inner.of.0", "method.inner.t"]
    back = state.restore(None, saved, "method", tensors, torch.device("cpu"))
    assert back["list"] == value["list"]
    assert back["name"] == "x"
    assert torch.equal(back["inner"]["t"], torch.ones(2))
    with pytest.raises(StateError, match=r"no tensor method\.inner"):
        state.restore(None, saved, "method", {}, torch.device("cpu"))
    with pytest.raises(StateError, match=r"method\.bad is a object"):
        state.capture({"bad": object()}, "method", {})
