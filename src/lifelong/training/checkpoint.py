"""Checkpoints on disk: written whole or not at all, checked when read, the last good one kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from lifelong.errors import StateError
from lifelong.files import write_file, write_json

_KEEP = 2
_FILES = {"tensors.safetensors", "state.json"}


def save_checkpoint(folder: Path, position: int, state: Any, tensors: dict[str, Tensor]) -> None:
    """Write the checkpoint of `position` (steps so far) into `folder` and drop all but the last two.

    The manifest (names, sizes, checksums) is written last, so a folder without one was interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    beside, final = folder / f".{position:010d}", folder / f"{position:010d}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        # Views and shared storage are legal in a model, and safetensors wants each tensor whole and alone.
        whole = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
        files = {
            "tensors.safetensors": save(whole),
            "state.json": json.dumps(state, allow_nan=False).encode(),
        }
        for name, content in files.items():
            write_file(beside / name, content)
        write_json(beside / "manifest.json", {name: _entry(content) for name, content in files.items()})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(beside, final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for old in _checkpoints(folder)[:-_KEEP]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path) -> tuple[Any, dict[str, Tensor]] | None:
    """Return the newest good checkpoint in `folder` as `(state, tensors)`, or None where there is none at all.

    A damaged one is passed over with one warning that names the file.

    Raises:
        StateError: there are checkpoints, and none of them is whole.
    """
    found = _checkpoints(folder)
    faults: list[str] = []
    for checkpoint in reversed(found):
        fault = _fault(checkpoint)
        if fault is None:
            for each in faults:
                warnings.warn(f"{each}: going on from {checkpoint.name} instead", stacklevel=2)
            state = json.loads((checkpoint / "state.json").read_text())
            return state, load_file(checkpoint / "tensors.safetensors")
        faults.append(fault)
    if faults:
        raise StateError(f"{faults[0]}: no good checkpoint is left, remove {folder.parent} to start again")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir()) if folder.is_dir() else []


def _fault(checkpoint: Path) -> str | None:
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
    except (OSError, ValueError):
        manifest = None
    if not _is_manifest(manifest):
        return f"checkpoint {checkpoint} has no readable manifest.json"
    for name, entry in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            return f"checkpoint file {path} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"checkpoint file {path} has {path.stat().st_size} bytes and should have {entry['bytes']}"
        if _entry(path.read_bytes()) != entry:
            return f"checkpoint file {path} does not have the content that was written"
    return None


def _is_manifest(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == _FILES
        and all(isinstance(entry, dict) and set(entry) == {"bytes", "blake2b"} for entry in value.values())
    )


def _entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "blake2b": hashlib.blake2b(content, digest_size=16).hexdigest()}
