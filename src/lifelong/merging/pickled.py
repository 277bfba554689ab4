"""Weights in PyTorch's pickled format: read without executing anything, and handed on as safetensors files are."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

from lifelong.errors import InputError
from lifelong.merging import safetensors
from lifelong.merging.safetensors import File

_NAMES = ("pytorch_model.bin", "adapter_model.bin")
_INDEX = "pytorch_model.bin.index.json"


def converted(folder: Path) -> list[File]:
    """Return the pickled weights in `folder` as files in memory.

    `torch.load(weights_only=True)` builds tensors and nothing else: a file that asks for more is refused, not executed.

    Raises:
        InputError: a file that is no such archive, or one that names code to run.
    """
    return [_file(folder / name) for name in _names(folder)]


def _names(folder: Path) -> Sequence[str]:
    if not (folder / _INDEX).is_file():
        return [name for name in _NAMES if (folder / name).is_file()]
    try:
        weight_map = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{folder / _INDEX} is not an index of weights") from None


def _file(path: Path) -> File:
    import torch
    from safetensors.torch import save

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} cannot be read as weights alone, and nothing of it was run ({reason})") from None
    if not isinstance(tensors, dict) or not all(isinstance(each, torch.Tensor) for each in tensors.values()):
        raise InputError(f"{path} must hold a mapping of names to tensors")
    data = save({name: each.contiguous().clone() for name, each in tensors.items()})
    return safetensors.parse(path, data)
