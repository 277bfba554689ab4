"""Small checkpoints for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lifelong.merging import safetensors
from lifelong.merging.formats import DTYPES

Tensors = dict[str, np.ndarray[Any, Any]]

LAYERS = 4
WIDTH = 24


def tensors(seed: int, base: Tensors | None = None, *, dtype: str = "BF16", rows: int = 40) -> Tensors:
    """Return the tensors of a small network in a format that safetensors names; near `base` where one is given."""
    random = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (rows, WIDTH)}
    for layer in range(LAYERS):
        for part, shape in {"attn.q": (WIDTH, WIDTH), "mlp.up": (3 * WIDTH, WIDTH), "norm": (WIDTH,)}.items():
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (rows, WIDTH)}
    found = {}
    for name, shape in shapes.items():
        drawn = random.standard_normal(shape)
        values = drawn if base is None else base[name].astype(float) + 0.1 * drawn
        found[name] = values.astype(DTYPES[dtype])
    return found


def write(folder: Path, values: Mapping[str, np.ndarray[Any, Any]], *, shards: int = 1, **config: Any) -> Path:
    """Write a model folder as Hugging Face lays it out, in so many shards, and return it."""
    folder.mkdir(parents=True)
    names = list(values)
    parts = [names[index::shards] for index in range(shards)]
    weight_map = {}
    for index, part in enumerate(parts):
        file = "model.safetensors" if shards == 1 else f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        write_file(folder / file, {name: values[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": LAYERS, "torch_dtype": "bfloat16", **config}))
    return folder


def write_file(path: Path, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write one safetensors file."""
    described = [(name, _dtype(each), each.shape) for name, each in values.items()]
    header, _ = safetensors.layout(described, {"format": "pt"})
    path.write_bytes(header + b"".join(np.ascontiguousarray(each).tobytes() for each in values.values()))


def read(folder: Path) -> Tensors:
    """Return all tensors of a folder, in their shapes and formats."""
    from lifelong.merging.checkpoint import open_model

    model = open_model(folder)
    return {name: model.raw(name).reshape(model.entry(name).shape) for name in model}


def _dtype(values: np.ndarray[Any, Any]) -> str:
    if values.dtype == ml_dtypes.bfloat16:
        return "BF16"
    return next(name for name, dtype in DTYPES.items() if dtype == values.dtype)
