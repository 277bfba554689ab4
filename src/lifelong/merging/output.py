"""The weights of the result: headers first, their full size reserved, every tensor written in its place."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from lifelong.errors import InputError
from lifelong.merging import safetensors
from lifelong.merging.checkpoint import INDEX
from lifelong.merging.formats import DTYPES
from lifelong.merging.rule import BLOCK
from lifelong.merging.safetensors import Entry

# What the names of the files of weights begin with, and of the state that a merge can go on from.
MODEL, RUNNING = "model", "running"
# Bytes after which the disk is told to begin: some hundredths of a second of a fast one.
_MUCH = 1 << 26
# Of Linux' fcntl.h.
_SYNC_FILE_RANGE_WRITE = 2

Described = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class Shard:
    """One file of weights that is being written: its path, its open descriptor, and where each tensor lies in it."""

    path: Path
    descriptor: int
    entries: Mapping[str, Entry]


class Output:
    """The files of weights of a merge under way."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self.folder, self.shards = folder, shards
        self._homes = {name: shard for shard in shards for name in shard.entries}
        self._open = list(shards)
        self._waiting = 0

    def write(self, name: str, offset: int, raw: np.ndarray[Any, Any]) -> None:
        """Write numbers into the tensor `name`, `offset` bytes behind its beginning; several threads may."""
        shard = self._homes[name]
        _write_all(shard.descriptor, raw.view(np.uint8).data, shard.entries[name].start + offset)

    def digest(self, name: str) -> str:
        """Return the digest of a tensor as it stands in the file, as the journal has it."""
        entry, descriptor = self._homes[name].entries[name], self._homes[name].descriptor
        step = BLOCK * DTYPES[entry.dtype].itemsize
        blocks = [
            xxh3_64_intdigest(os.pread(descriptor, min(step, entry.stop - start), start))
            for start in range(entry.start, entry.stop, step)
        ]
        return xxh3_128_hexdigest(np.array(blocks, np.uint64).tobytes())

    def write_index(self) -> None:
        """Write the index of shards, where there are several."""
        shards = [shard for shard in self.shards if shard.path.name.startswith(MODEL)]
        if len(shards) == 1:
            return
        total = sum(entry.stop - entry.start for shard in shards for entry in shard.entries.values())
        weight_map = {name: shard.path.name for shard in shards for name in shard.entries}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (self.folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")

    def __add__(self, other: Output) -> Output:
        """Return one output of the files of both."""
        return Output(self.folder, [*self.shards, *other.shards])

    def begin_writing(self, names: Iterable[str]) -> None:
        """Let what is written go to the disk, without waiting, if it is much by now that the tensors `names` are.

        Else most of it would lie in memory at the end, and the end would wait for all of it.
        """
        entries = [self._homes[name].entries[name] for name in names]
        self._waiting += sum(entry.stop - entry.start for entry in entries)
        if self._waiting >= _MUCH:
            self._waiting = 0
            for shard in self.shards:
                _begin_writing(shard.descriptor)

    def sync(self) -> None:
        """Wait until everything has reached the disk."""
        for shard in self.shards:
            os.fsync(shard.descriptor)

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        while self._open:
            os.close(self._open.pop().descriptor)


def reserve(
    folder: Path,
    tensors: Sequence[Described],
    metadata: Mapping[str, str],
    shard_bytes: float,
    *,
    fresh: bool,
    stem: str = MODEL,
) -> Output:
    """Make the files of weights for `tensors` (name, dtype, shape) in `folder`, at their full size.

    Args:
        folder: where.
        tensors: in the order in which they will lie.
        metadata: strings for the headers.
        shard_bytes: the largest file; a single tensor may be larger.
        fresh: write headers; else the files are there and are opened.
        stem: what the names of the files begin with.

    Raises:
        InputError: the disk has not that much room.
    """
    groups = _groups(tensors, shard_bytes)
    layouts = [safetensors.layout(group, metadata) for group in groups]
    sizes = [len(header) + sum(e.stop - e.start for e in entries.values()) for header, entries in layouts]
    free = shutil.disk_usage(folder).free
    if fresh and free < sum(sizes):
        raise InputError(f"{folder} has {free:,} bytes free, and the result takes {sum(sizes):,}")
    shards: list[Shard] = []
    try:
        for index, ((header, entries), size) in enumerate(zip(layouts, sizes, strict=True)):
            path = folder / _file_name(stem, index, len(groups))
            shards.append(Shard(path, os.open(path, os.O_RDWR | os.O_CREAT, 0o644), entries))
            if fresh:
                _allocate(shards[-1].descriptor, size)
                _write_all(shards[-1].descriptor, memoryview(header), 0)
    except OSError as error:
        Output(folder, shards).close()
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{folder} has no room for the {sum(sizes):,} bytes of the result") from None
    return Output(folder, shards)


def _groups(tensors: Sequence[Described], shard_bytes: float) -> list[list[Described]]:
    groups: list[list[Described]] = [[]]
    filled = 0
    for name, dtype, shape in tensors:
        size = int(np.prod(shape, dtype=object)) * DTYPES[dtype].itemsize
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((name, dtype, shape))
        filled += size
    return groups


def _file_name(stem: str, index: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{index + 1:05d}-of-{count:05d}.safetensors"


def _write_all(descriptor: int, data: memoryview, place: int) -> None:
    """Write `data` at `place`: the system may take less of it at a time."""
    while data:
        written = os.pwrite(descriptor, data, place)
        place, data = place + written, data[written:]


def _begin_writing(descriptor: int) -> None:
    """Ask Linux to begin writing what has changed in a file; others do when they think fit."""
    if sys.platform == "linux":
        call = getattr(ctypes.CDLL(None), "sync_file_range", None)
        if call is not None:
            # From byte 0 on, all of it. It is a hint: whether it worked shows when the file is waited for.
            call(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)
