"""The number formats of checkpoints: what their names mean, and whether raw numbers are finite.

Formats that NumPy lacks (bfloat16, 8-bit floats) come from `ml_dtypes`; nothing here imports PyTorch, which would cost
more time than merging a small model does.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from lifelong.errors import InputError, closest

# As safetensors names them.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

# As recipes and people name them.
_SPELLED = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "fp32": "F32",
    "fp16": "F16",
    "bf16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}

# Bit patterns from which on, sign apart, a number is infinite or none.
_NONFINITE = {
    "F64": 0x7FF0000000000000,
    "F32": 0x7F800000,
    "F16": 0x7C00,
    "BF16": 0x7F80,
    "F8_E4M3": 0x7F,
    "F8_E5M2": 0x7C,
}


def named(name: str) -> str:
    """Return the safetensors name of a format as people spell it: `bfloat16` is `BF16`.

    Raises:
        InputError: no such format.
    """
    spelled = name.removeprefix("torch.").lower()
    if spelled in _SPELLED:
        return _SPELLED[spelled]
    if name.upper() in _NONFINITE:
        return name.upper()
    raise InputError(f"unknown dtype {name!r}{closest(name, _SPELLED) or ':'} known are {', '.join(sorted(_SPELLED))}")


def floating(name: str) -> bool:
    """Return whether a format, by its safetensors name, holds fractions."""
    return name in _NONFINITE


def working(name: str) -> np.dtype[Any]:
    """Return the format that arithmetic on numbers of format `name` happens in: float32, for float64 itself."""
    return DTYPES["F64"] if name == "F64" else DTYPES["F32"]


def nonfinite(values: np.ndarray[Any, Any], name: str) -> int:
    """Return how many of `values`, of the format `name`, are infinite or not a number.

    By their bits: two integer maxima per block, a small share of the cost of converting it.
    """
    if not floating(name) or values.size == 0:
        return 0
    unsigned = values.view(f"u{values.itemsize}")
    sign = 1 << (8 * values.itemsize - 1)
    limit = _NONFINITE[name]
    if int(unsigned.view(f"i{values.itemsize}").max()) < limit and int(unsigned.max()) < sign + limit:
        return 0
    return int(np.count_nonzero((unsigned & np.array(sign - 1, unsigned.dtype)) >= limit))
