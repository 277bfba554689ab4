"""Decoded data on disk: built once, whichever process comes first, and read as tensors ever after."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import filelock
import platformdirs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lifelong.data.dataset import Dataset, Samples

_FORMAT = 1


def folder() -> Path:
    """Return where decoded data is kept: `LIFELONG_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("LIFELONG_CACHE") or platformdirs.user_cache_dir("lifelong")) / "data"


def cached(key: str, build: Callable[[], Dataset]) -> Dataset:
    """Return the data set of `key`, from the cache or, the first time, from `build()`.

    A damaged file is dropped with one warning and built again. A cache that cannot be written (a full disk, a read-only
    home) costs a warning and no more.

    Args:
        key: digest of the content that the data set is made of, and of how.
        build: decodes it.
    """
    path = folder() / f"{key}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock")):
            found = _read(path)
            if found is None:
                found = build()
                _write(path, found)
            return found
    except OSError as error:
        ours = error.filename is not None and Path(error.filename) in (path.parent, *path.parent.parents)
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not ours:
            raise
        warnings.warn(f"decoded data is not kept, {path.parent} cannot be written ({error.strerror})", stacklevel=2)
        return build()


def _read(path: Path) -> Dataset | None:
    if not path.is_file():
        return None
    try:
        about = json.loads(path.with_suffix(".json").read_text())
        if about["format"] != _FORMAT:
            raise ValueError(f"format {about['format']} instead of {_FORMAT}")
        if path.stat().st_size != about["bytes"]:
            raise ValueError(f"{path.stat().st_size} bytes instead of {about['bytes']}")
        tensors = load_file(path)
        train, test = (Samples(tensors[f"{part}.inputs"], tensors[f"{part}.targets"]) for part in ("train", "test"))
        return Dataset(about["name"], train, test, tuple(about["classes"]), about["fingerprint"])
    except (OSError, TypeError, ValueError, KeyError, SafetensorError) as error:
        warnings.warn(f"cached data {path} is damaged ({error!r}): it is decoded again", stacklevel=3)
        path.unlink(missing_ok=True)
        return None


def _write(path: Path, data: Dataset) -> None:
    tensors: dict[str, Tensor] = {
        "train.inputs": data.train.inputs,
        "train.targets": data.train.targets,
        "test.inputs": data.test.inputs,
        "test.targets": data.test.targets,
    }
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
        about = {
            "format": _FORMAT,
            "name": data.name,
            "classes": data.classes,
            "fingerprint": data.fingerprint,
            "bytes": beside.stat().st_size,
        }
        beside.with_suffix(".about").write_text(json.dumps(about))
        os.replace(beside.with_suffix(".about"), path.with_suffix(".json"))
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        # The data is decoded and good; only the next start will be slower.
        warnings.warn(f"decoded data is not kept, {path} cannot be written ({error})", stacklevel=3)
    finally:
        beside.unlink(missing_ok=True)
        beside.with_suffix(".about").unlink(missing_ok=True)
