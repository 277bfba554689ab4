"""The masks and rescalers of EMR: a shared model, and what makes each expert's model of it.

Huang et al. 2024, 2405.17461. The rule `emr` makes the shared part, `theta_0 + tau`; task t is answered by
`theta_0 + lambda_t M_t tau`, `M_t = [tau_t tau > 0]`, `lambda_t = sum |tau_t| / sum |M_t tau|` over the whole model
(the equation of the paper; its code takes sums of means per tensor). A modulator is one bit a weight and one number.

On disk it is a safetensors file: the mask of each tensor under its name, as bytes of eight bits (the first number is
the highest bit of the first byte), and the rescaler in the header's metadata.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lifelong.errors import InputError
from lifelong.merging import safetensors
from lifelong.merging.rule import Array, namespace

Tree = Mapping[str, Array]

# What the header's metadata says of a file of masks.
_FORMAT = {"format": "lifelong-modulator", "bits": "big"}


@dataclass(frozen=True)
class Modulator:
    """What makes one expert's model of the shared one.

    Args:
        masks: of each tensor, flattened, eight numbers a byte: those that the expert takes from the shared task vector.
        rescaler: by which it multiplies them.
    """

    masks: Mapping[str, np.ndarray[Any, Any]]
    rescaler: float


def modulators(base: Tree, experts: Sequence[Tree], shared: Tree) -> list[Modulator]:
    """Return the modulator of each expert.

    Args:
        base: the model that the experts were fine-tuned from.
        experts: fine-tuned models.
        shared: what the rule `emr` made of them.
    """
    return [_modulator(base, expert, shared) for expert in experts]


def _modulator(base: Tree, expert: Tree, shared: Tree) -> Modulator:
    masks: dict[str, np.ndarray[Any, Any]] = {}
    own = taken = 0.0
    for name, first in base.items():
        xp = namespace(first)
        if not xp.isdtype(first.dtype, "real floating"):
            continue
        change, elected = expert[name] - first, shared[name] - first
        mask = change * elected > 0
        own += float(xp.sum(xp.abs(change), dtype=xp.float64))
        taken += float(xp.sum(xp.abs(elected * mask), dtype=xp.float64))
        masks[name] = np.packbits(_numpy(xp.reshape(mask, (-1,))))
    return Modulator(masks, own / taken if taken else 0.0)


def modulated(base: Tree, shared: Tree, modulator: Modulator) -> dict[str, Array]:
    """Return the model of one expert, as far as the shared one and the expert's modulator hold it.

    Raises:
        InputError: a modulator of other tensors.
    """
    made = {}
    for name, first in base.items():
        xp = namespace(first)
        if not xp.isdtype(first.dtype, "real floating"):
            made[name] = shared[name]
            continue
        size = int(np.prod(first.shape))
        packed = modulator.masks.get(name, np.empty(0, np.uint8))
        if packed.size != -(-size // 8):
            raise InputError(f"the modulator's mask of tensor {name!r} is of another size than the tensor")
        bits = np.unpackbits(packed, count=size).reshape(tuple(first.shape))
        mask = xp.asarray(bits, dtype=first.dtype, device=first.device)
        # Arithmetic on NumPy's 0-d arrays gives scalars.
        made[name] = xp.reshape(first + modulator.rescaler * mask * (shared[name] - first), tuple(first.shape))
    return made


def save(path: Path, modulator: Modulator) -> Path:
    """Write a modulator to `path`, over what is there; returns the path."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.partial")
    # `repr` gives back the same float64; the masks' own names are those of the tensors.
    save_file(dict(modulator.masks), written, metadata={**_FORMAT, "rescaler": repr(modulator.rescaler)})
    return written.replace(path)


def load(path: Path) -> Modulator:
    """Return the modulator in the file at `path`.

    Raises:
        InputError: a damaged file, or one of something else.
    """
    file = safetensors.read(path)
    try:
        rescaler = float(file.metadata["rescaler"])
    except (KeyError, ValueError):
        rescaler = math.nan
    odd = [name for name, entry in file.entries.items() if entry.dtype != "U8" or len(entry.shape) != 1]
    if odd or not math.isfinite(rescaler) or any(file.metadata.get(key) != each for key, each in _FORMAT.items()):
        raise InputError(
            f"{path} is no modulator: expected packed masks and a rescaler, as `modulators.save` writes them"
        )
    return Modulator({name: file.raw(name).copy() for name in file.entries}, rescaler)


def _numpy(mask: Array) -> np.ndarray[Any, Any]:
    return mask if isinstance(mask, np.ndarray) else mask.cpu().numpy()
