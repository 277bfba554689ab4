"""The safetensors file format, read and laid out: an 8-byte length, a JSON header, then the numbers.

The header is checked as if an enemy had written it, before anything is allocated by what it says. Numbers are
memory-mapped: opening a model of any size costs its headers.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lifelong.errors import InputError
from lifelong.merging.formats import DTYPES

# What the reference implementation allows; a header of a million tensors is smaller.
_LONGEST_HEADER = 100_000_000
_ALIGNED = 8


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Args:
        name: of the tensor.
        dtype: as safetensors names it, such as `BF16`.
        shape: of the tensor.
        start: first byte, counted from the beginning of the file.
        stop: the byte behind the last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class File:
    """A safetensors file whose header has been checked.

    Args:
        path: where it is.
        entries: its tensors by name, in the order of their bytes.
        metadata: the strings that its header carries.
        data: the whole file, mapped into memory.
    """

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data: mmap.mmap | bytes

    def raw(self, name: str) -> np.ndarray[Any, Any]:
        """Return the numbers of a tensor, flat, in their own format, read-only and not yet read from disk."""
        entry = self.entries[name]
        dtype = DTYPES[entry.dtype]
        return np.frombuffer(self.data, dtype, (entry.stop - entry.start) // dtype.itemsize, entry.start)


def read(path: Path) -> File:
    """Return the file at `path` with its header checked.

    Raises:
        InputError: no safetensors file, or a truncated or contradictory one; what is wrong, and where.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # An empty file cannot be mapped.
        return parse(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")


def parse(path: Path, data: mmap.mmap | bytes) -> File:
    """Return the file that `data` holds, its header checked; `path` is what errors call it."""
    size, length = len(data), int.from_bytes(data[:8], "little")
    if size < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise InputError(
            f"{path} is not a safetensors file, or was cut off: it has {size} bytes, its header claims {length}"
        )
    header = _parsed(path, data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise InputError(f"{path}: __metadata__ in its header must be a mapping of strings")
    entries = sorted((_entry(path, name, each, 8 + length) for name, each in header.items()), key=_place)
    _check_cover(path, entries, 8 + length, size)
    return File(path, {each.name: each for each in entries}, metadata, data)


def layout(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Entry]]:
    """Return the header of a file with `tensors` (name, dtype, shape) in that order, and where each will lie."""
    places: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        stop = offset + math.prod(shape) * DTYPES[dtype].itemsize
        places[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(places, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    header = len(text).to_bytes(8, "little") + text
    entries = {}
    for name, dtype, shape in tensors:
        start, stop = places[name]["data_offsets"]
        entries[name] = Entry(name, dtype, shape, len(header) + start, len(header) + stop)
    return header, entries


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{path}: its header names {twice!r} twice")
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its header is not JSON ({str(error)[:80]})") from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: its header must be a mapping of tensors, and is a {type(header).__name__}")
    return header


def _entry(path: Path, name: str, described: Any, begin: int) -> Entry:
    where = f"{path}: tensor {name!r} in its header"
    if not isinstance(described, dict) or set(described) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{where} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"{where} has dtype {str(dtype)[:40]!r}; known are {', '.join(DTYPES)}")
    if not _naturals(shape):
        raise InputError(f"{where} must have a list of sizes as its shape, and has {str(shape)[:80]}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError(f"{where} must have two ascending data_offsets, and has {str(offsets)[:80]}")
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != needed:
        raise InputError(
            f"{where} has {offsets[1] - offsets[0]} bytes, and its shape {str(shape)[:80]} in {dtype} takes "
            f"{str(needed)[:40]}"
        )
    return Entry(name, dtype, tuple(shape), begin + offsets[0], begin + offsets[1])


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(each) is int and each >= 0 for each in values)


def _place(entry: Entry) -> tuple[int, int]:
    return entry.start, entry.stop


def _check_cover(path: Path, entries: Sequence[Entry], begin: int, size: int) -> None:
    """Check that the tensors lie one behind the other and fill the file."""
    end = begin
    for entry in entries:
        if entry.start != end:
            what = "overlaps the one before it" if entry.start < end else "leaves a gap before it"
            raise InputError(f"{path}: tensor {entry.name!r} {what} (byte {entry.start} instead of {end})")
        end = entry.stop
    if end != size:
        state = "was cut off" if end > size else "has bytes that belong to no tensor"
        raise InputError(f"{path} {state}: it has {size} bytes, its header describes {end}")
