"""The file format: what we lay out the reference implementation reads, and no damage is read as data."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merging.models import tensors, write_file
from safetensors.numpy import save

from lifelong.errors import InputError
from lifelong.merging import safetensors
from lifelong.merging.formats import DTYPES, nonfinite


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def described(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def test_the_reference_implementation_reads_what_we_lay_out(tmp_path: Path) -> None:
    from safetensors import safe_open

    values = {name: each.astype(np.float32) for name, each in tensors(0).items()}
    values |= {"none": np.zeros((0, 3), np.float32), "one": np.array(2.5), "ümlaut\n": np.arange(3, dtype=np.int16)}
    write_file(tmp_path / "model.safetensors", values)
    with safe_open(tmp_path / "model.safetensors", "numpy") as read:
        assert set(read.keys()) == set(values)
        for name, each in values.items():
            np.testing.assert_array_equal(read.get_tensor(name), each)
        assert read.metadata() == {"format": "pt"}


def test_we_read_what_the_reference_implementation_writes(tmp_path: Path) -> None:
    values = {"b": np.arange(6.0).reshape(2, 3), "a": np.array([True, False]), "c": np.zeros((3, 0), np.float16)}
    (tmp_path / "x.safetensors").write_bytes(save(values, {"who": "them"}))
    file = safetensors.read(tmp_path / "x.safetensors")
    assert file.metadata == {"who": "them"}
    for name, each in values.items():
        np.testing.assert_array_equal(file.raw(name).reshape(file.entries[name].shape), each)
    starts = [entry.start for entry in file.entries.values()]
    assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a safetensors file"),
        (b"\x00" * 7, "not a safetensors file"),
        (struct.pack("<Q", 2**63) + b"{}", "its header claims 9223372036854775808"),
        (struct.pack("<Q", 10) + b"{}", "was cut off"),
        (file_of(b"{"), "is not JSON"),
        (file_of(b"\xff\xfe"), "is not JSON"),
        (file_of(b"[" * 100_000), "is not JSON"),
        (file_of([]), "must be a mapping"),
        (file_of(b'{"a": 1, "a": 2}'), "names 'a' twice"),
        (file_of({"__metadata__": {"x": 1}}), "must be a mapping of strings"),
        (file_of({"a": 3}), "must have dtype, shape and data_offsets"),
        (file_of(described(dtype="F31"), bytes(8)), "dtype 'F31'"),
        (file_of(described(dtype=["F32"]), bytes(8)), "dtype"),
        (file_of(described(shape=[-2]), bytes(8)), "list of sizes"),
        (file_of(described(shape=[2.0]), bytes(8)), "list of sizes"),
        (file_of(described(shape=[True, 2]), bytes(8)), "list of sizes"),
        (file_of(described(shape=[2**62, 2**62]), bytes(8)), "takes"),
        (file_of(described(offsets=[8, 0]), bytes(8)), "ascending"),
        (file_of(described(offsets=[0, 8, 9]), bytes(8)), "ascending"),
        (file_of(described(offsets=[0, 12]), bytes(12)), "12 bytes, and its shape"),
        (file_of(described(offsets=[0, 8]), bytes(4)), "was cut off"),
        (file_of(described(offsets=[0, 8]), bytes(9)), "belong to no tensor"),
        (file_of(described(offsets=[4, 12]), bytes(12)), "leaves a gap"),
        (file_of({**described(), "b": described(offsets=[4, 12])["a"]}, bytes(12)), "overlaps"),
    ],
)
def test_damage_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.safetensors") as caught:
        safetensors.read(path)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 600


def test_ten_thousand_damaged_headers_end_in_an_error_or_in_the_truth() -> None:
    """Bit flips, cuts, splices and absurd numbers: an `InputError`, or tensors that lie within the file."""
    drawn = random.Random(0)
    whole = save({f"layer.{i}.weight": np.ones((i, 4), np.float32) for i in range(4)})
    length = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(10_000):
        data = bytearray(whole)
        for _ in range(drawn.randint(1, 4)):
            place = drawn.randrange(min(length, len(data)) or 1)
            kind = drawn.randrange(5)
            if kind == 0 and data:
                data[place] ^= 1 << drawn.randrange(8)
            elif kind == 1:
                del data[drawn.randrange(len(data) + 1) :]
            elif kind == 2:
                data[place:place] = bytes(drawn.randrange(256) for _ in range(drawn.randrange(9)))
            elif kind == 3:
                data[place : place + 1] = str(drawn.choice([-1, 0, 2**31, 2**63, 10**30])).encode()
            else:
                data[:8] = struct.pack("<Q", drawn.choice([0, 1, length, 2**32, 2**64 - 1]))
        try:
            file = safetensors.parse(Path("x"), bytes(data))
        except InputError:
            refused += 1
            continue
        assert sum(file.raw(name).nbytes for name in file.entries) <= len(data)
    assert refused > 5_000


@pytest.mark.parametrize("name", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_numbers_that_are_not_finite_are_counted(name: str) -> None:
    dtype = DTYPES[name]
    every = np.arange(256 if dtype.itemsize == 1 else 65536, dtype=f"u{min(2, dtype.itemsize)}")
    shifted = every.astype(f"u{dtype.itemsize}") << max(0, 8 * dtype.itemsize - 16)
    values = shifted.view(dtype)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(values.astype(np.float64))
    assert not finite.all()
    assert nonfinite(values, name) == np.count_nonzero(~finite)
    assert nonfinite(values[finite], name) == 0
