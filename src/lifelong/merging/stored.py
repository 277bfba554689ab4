"""Task vectors in less room: in bfloat16, or the largest numbers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lifelong.errors import InputError, unknown
from lifelong.tree import Params

Format = Literal["float32", "bf16", "sparse"]

# What a sparse tensor is stored as: one bit for each number, and those whose bit is set.
_MASK, _VALUES = ".mask", ".values"


def pack(change: Params, format: Format, density: float = 0.1) -> Params:
    """Return the tensors that a task vector, in float32, is stored as.

    Args:
        change: the task vector.
        format: of it.
        density: `sparse` keeps so large a share of each tensor, above 0 to 1: the largest magnitudes, and all that are
            equal to the least of them. It takes `1/32 + density` of the room.

    Raises:
        InputError: an unknown format, or a density out of range.
    """
    if format not in get_args(Format):
        raise unknown("format", format, get_args(Format))
    if format == "float32":
        return change
    if format == "bf16":
        return {name: tensor.to(torch.bfloat16) for name, tensor in change.items()}
    if not 0 < density <= 1:
        raise InputError(f"density = {density} must be above 0, and 1 at most")
    packed: Params = {}
    for name, tensor in change.items():
        mask = _largest(tensor.flatten(), density)
        packed[name + _MASK] = torch.from_numpy(np.packbits(mask.numpy()))
        packed[name + _VALUES] = tensor.flatten()[mask]
    return packed


def unpack(packed: Params, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Return the task vector of `shapes` that `pack` made `packed` of, in float32."""
    change = {}
    for name, shape in shapes.items():
        if name in packed:
            change[name] = packed[name].float()
            continue
        bits = np.unpackbits(packed[name + _MASK].numpy(), count=math.prod(shape))
        dense = torch.zeros(math.prod(shape))
        dense[torch.from_numpy(bits).bool()] = packed[name + _VALUES]
        change[name] = dense.reshape(shape)
    return change


def _largest(numbers: Tensor, density: float) -> Tensor:
    """Return which of `numbers` `[n]` are kept, boolean; zeros never are."""
    sizes = numbers.abs()
    if density == 1 or len(sizes) == 0:
        return sizes > 0
    kept = max(1, int(density * len(sizes)))
    cut = sizes.kthvalue(len(sizes) - kept + 1).values
    return (sizes >= cut) & (sizes > 0)
