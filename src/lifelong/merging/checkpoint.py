"""Models on disk: a safetensors file, or a folder of them as Hugging Face lays it out, read lazily."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lifelong.errors import InputError, closest
from lifelong.merging import safetensors
from lifelong.merging.formats import working
from lifelong.merging.rule import Values
from lifelong.merging.safetensors import Entry, File

INDEX = "model.safetensors.index.json"
_SINGLE = ("model.safetensors", "adapter_model.safetensors")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")


class Model(Protocol):
    """The named tensors of a model, on disk or made of what is there."""

    @property
    def path(self) -> Path: ...
    @property
    def files(self) -> tuple[File, ...]: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, name: str, /) -> bool: ...
    def entry(self, name: str) -> Entry: ...
    def values(self, name: str) -> Values: ...


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model on disk.

    Args:
        path: the folder or file, as it was given.
        files: of the model, in the order of their names.
        homes: the file that each tensor is in, in the order of files and of bytes: a pass in this order reads the disk
            from front to back.
    """

    path: Path
    files: tuple[File, ...]
    homes: Mapping[str, File]

    def __iter__(self) -> Iterator[str]:
        return iter(self.homes)

    def __contains__(self, name: str) -> bool:
        return name in self.homes

    def entry(self, name: str) -> Entry:
        return self.homes[name].entries[name]

    def raw(self, name: str) -> np.ndarray[Any, Any]:
        """Return the numbers of a tensor, flat, in their own format, not yet read from disk."""
        return self.homes[name].raw(name)

    def values(self, name: str) -> Mapped:
        """Return the numbers of a tensor, to be read as they are needed."""
        entry = self.entry(name)
        return Mapped(self.raw(name), entry.dtype, entry.shape)

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """What `config.json` beside the weights says; empty where there is none."""
        path = self.path / "config.json"
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from None
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Mapped:
    """The numbers of a tensor on disk.

    Args:
        raw: flat, in the format of the file.
        dtype: that format, as safetensors names it.
        shape: of the tensor.
    """

    raw: np.ndarray[Any, Any]
    dtype: str
    shape: tuple[int, ...]

    def read(self, start: int, stop: int, step: int = 1) -> np.ndarray[Any, Any]:
        """Return every `step`-th number from `start` to `stop`, in float32 (float64 where the file has that)."""
        return self.raw[start:stop:step].astype(working(self.dtype))


def open_model(path: Path) -> Checkpoint:
    """Return the model at `path`, its headers checked and nothing else read.

    Args:
        path: a `.safetensors` file; or a folder with `model.safetensors`, with shards and their index, or with an
            adapter; or one where `model.safetensors` is the only file of weights.

    Raises:
        InputError: nothing there, no weights in it, a file that is damaged, or an index that does not fit its files.
    """
    if path.is_file():
        return _of_files(path, [safetensors.read(path)])
    if not path.is_dir():
        near = closest(path.name, [each.name for each in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise InputError(f"no model at {path}{near or ': give a folder or a .safetensors file'}")
    if (path / INDEX).is_file():
        return _sharded(path)
    for name in _SINGLE:
        if (path / name).is_file():
            return _of_files(path, [safetensors.read(path / name)])
    weights = sorted(path.glob("*.safetensors"))
    if len(weights) == 1:
        return _of_files(path, [safetensors.read(weights[0])])
    if weights:
        raise InputError(
            f"{path} has {len(weights)} safetensors files and no {INDEX} that says how they belong together"
        )
    if any((path / name).is_file() for name in _PICKLED):
        from lifelong.merging.pickled import converted

        return _of_files(path, converted(path))
    raise InputError(f"{path} has no weights: expected model.safetensors, or shards with {INDEX}")


def _sharded(path: Path) -> Checkpoint:
    index = path / INDEX
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index} is not an index: it must be JSON with a weight_map of tensors to files") from None
    for file in set(names.values()):
        if Path(file).name != file or not (path / file).is_file():
            raise InputError(f"{index} names the file {file!r}, and {path} has none")
    model = _of_files(path, [safetensors.read(path / file) for file in sorted(set(names.values()))])
    wrong = sorted(name for name, file in names.items() if name not in model or model.homes[name].path.name != file)
    extra = sorted(set(model) - set(names))
    if wrong or extra:
        what = (
            f"{wrong[0]!r} is not in {names[wrong[0]]}" if wrong else f"{extra[0]!r} is in a file but not in the index"
        )
        raise InputError(f"{index} does not fit its files ({len(wrong) + len(extra)} tensors): {what}")
    return model


def _of_files(path: Path, files: list[File]) -> Checkpoint:
    homes: dict[str, File] = {}
    for file in files:
        for name in file.entries:
            if name in homes:
                raise InputError(f"{path}: tensor {name!r} is in {homes[name].path.name} and in {file.path.name}")
            homes[name] = file
    return Checkpoint(path, tuple(files), homes)
