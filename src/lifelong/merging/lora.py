"""LoRA adapters (Hu et al. 2021, 2106.09685): models with an adapter added on the fly, and adapters out of models.

An adapter says for a weight `W` of `[out, in]` that `W + s B A` is meant, with A of `[r, in]`, B of `[out, r]` and
`s = alpha / r` (`alpha / sqrt(r)` where it is rank-stabilised, 2312.03732). The sum is made block by block, as it is
read.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lifelong.errors import InputError
from lifelong.merging import safetensors
from lifelong.merging.checkpoint import Checkpoint, Model, open_model
from lifelong.merging.formats import floating
from lifelong.merging.plan import common_names
from lifelong.merging.rule import Rule, Values
from lifelong.merging.safetensors import Entry, File

CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Low:
    """A change of low rank to one weight: `left @ right`, the scale in it.

    Args:
        left: `[out, r]` float32.
        right: `[r, in]` float32.
    """

    left: Numbers
    right: Numbers


@dataclass(frozen=True)
class Adapted:
    """The numbers of a tensor with a change of low rank added.

    Args:
        inner: the tensor without it, of two dimensions.
        change: what is added.
    """

    inner: Values
    change: Low

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    def read(self, start: int, stop: int, step: int = 1) -> Numbers:
        """Return every `step`-th number from `start` to `stop` of the sum; only the rows in it are multiplied."""
        values: Numbers = self.inner.read(start, stop, step)
        width = self.shape[1]
        first, last = start // width, -(-stop // width)
        rows = (self.change.left[first:last] @ self.change.right).reshape(-1)
        values += rows[start - first * width : stop - first * width : step]
        return values


@dataclass(frozen=True)
class AdaptedModel:
    """A model on disk with an adapter: in names, formats and shapes as the model is.

    Args:
        model: without the adapter.
        changes: by tensor of the model.
        saved: tensors of the adapter's that replace those of the model.
        adapter: the adapter's files.
    """

    model: Model
    changes: Mapping[str, Low]
    saved: Mapping[str, str]
    adapter: Checkpoint

    @property
    def path(self) -> Path:
        return self.model.path

    @property
    def files(self) -> tuple[File, ...]:
        return (*self.model.files, *self.adapter.files)

    @property
    def config(self) -> Mapping[str, Any]:
        return self.model.config

    def __iter__(self) -> Iterator[str]:
        return iter(self.model)

    def __contains__(self, name: str) -> bool:
        return name in self.model

    def entry(self, name: str) -> Entry:
        return self.model.entry(name)

    def values(self, name: str) -> Values:
        """Return the numbers of a tensor, with the adapter's change."""
        if name in self.saved:
            return self.adapter.values(self.saved[name])
        inner = self.model.values(name)
        return Adapted(inner, self.changes[name]) if name in self.changes else inner


def is_adapter(model: Model) -> bool:
    """Return whether what was opened is a LoRA adapter and no model."""
    return (model.path / CONFIG).is_file() if model.path.is_dir() else False


def with_adapter(model: Model, path: Path) -> AdaptedModel:
    """Return `model` with the adapter in the folder `path` added.

    Raises:
        InputError: no adapter, one of a kind other than plain LoRA, or one that does not fit the model.
    """
    adapter = open_model(path)
    if not is_adapter(adapter):
        raise InputError(f"{path} is no adapter: it has no {CONFIG}")
    changes, saved = parts(adapter)
    strange = []
    for target in (*changes, *saved):
        if target not in model:
            strange.append(target)
        elif target in changes:
            low, shape = changes[target], model.entry(target).shape
            if (low.left.shape[0], low.right.shape[1]) != shape:
                raise InputError(
                    f"{path} changes {target} by {[low.left.shape[0], low.right.shape[1]]}, and it is {list(shape)}"
                )
    if strange:
        raise InputError(f"{path} changes {len(strange)} tensors that {model.path} does not have: {', '.join(strange)}")
    return AdaptedModel(model, changes, saved, adapter)


def parts(adapter: Checkpoint) -> tuple[dict[str, Low], dict[str, str]]:
    """Return what an adapter changes, and its own names of the tensors that it replaces, by tensor of the model.

    Raises:
        InputError: a kind of adapter other than plain LoRA, or half of a matrix.
    """
    config = _config(adapter.path)
    changes, saved = {}, {}
    for name in adapter:
        inner = name.removeprefix(_PREFIX)
        found = re.fullmatch(r"(.*)\.lora_(embedding_)?(A|B)(\.weight)?", inner)
        if found is None:
            saved[inner] = name
        elif found[3] == "A":
            changes[f"{found[1]}.weight"] = _low(adapter, name, bool(found[2]), found[1], config)
    return changes, saved


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path / CONFIG} is not JSON: {error}") from None
    odd = [key for key in ("use_dora", "lora_bias") if config.get(key)]
    if config.get("peft_type", "LORA") != "LORA" or odd:
        raise InputError(
            f"{path} is an adapter of the kind {odd or config.get('peft_type')}: only plain LoRA is supported"
        )
    return dict(config)


def _low(adapter: Checkpoint, name: str, embedding: bool, module: str, config: Mapping[str, Any]) -> Low:
    right = _matrix(adapter, name)
    left = _matrix(adapter, re.sub(r"lora_(embedding_)?A", lambda found: f"lora_{found[1] or ''}B", name))
    rank = right.shape[0]
    alpha = _of_module(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    scale = np.float32(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    if embedding or config.get("fan_in_fan_out"):
        left, right = right.T, left.T
    return Low(np.ascontiguousarray(left * scale), np.ascontiguousarray(right))


def _of_module(pattern: Mapping[str, float] | None, module: str, default: float) -> float:
    """Return the value of the first pattern that the module's name ends with, as peft matches them."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _matrix(adapter: Checkpoint, name: str) -> Numbers:
    if name not in adapter:
        raise InputError(f"{adapter.path} has no tensor {name!r}, the other half of an adapter's matrix")
    entry = adapter.entry(name)
    if len(entry.shape) != 2 or not floating(entry.dtype):
        raise InputError(f"{adapter.path}: {name!r} is {list(entry.shape)}; adapters of matrices alone are supported")
    values: Numbers = adapter.values(name).read(0, math.prod(entry.shape)).reshape(entry.shape)
    if not np.isfinite(values).all():
        raise InputError(f"{adapter.path}: {name!r} holds NaN or infinities")
    return values.astype(np.float32)


def truncated(change: Numbers, rank: int | None = None, energy: float = 1.0) -> Low:
    """Return the best approximation of low rank to `change` `[out, in]`, by singular values (Eckart & Young 1936).

    Args:
        change: float32.
        rank: of the approximation; or, where it is None,
        energy: the share of the squared norm, above 0 to 1, that it must reach with the least rank.
    """
    left, values, right = np.linalg.svd(change, full_matrices=False)
    if rank is None:
        shares = np.cumsum(values.astype(float) ** 2)
        rank = 1 + int(np.searchsorted(shares, energy * shares[-1] * (1 - 1e-12)))
    root = np.sqrt(values[:rank])
    return Low(left[:, :rank] * root, root[:, None] * right[:rank])


def merge_adapters(rule: Rule, paths: Sequence[Path], out: Path, *, rank: int | None = None) -> dict[str, int]:
    """Merge adapters of one model into an adapter.

    The rule works on what adapters do to weights, `s B A`, with a base of zeros, and the result is brought back to low
    rank by singular values: merging the A and the B by themselves would merge neither.

    Args:
        rule: how.
        paths: folders of the adapters; where one changes a weight that another leaves alone, that one's change is 0.
        out: a folder that does not exist yet.
        rank: of the result; by default as much as the largest of the adapters has for a weight.

    Returns:
        The rank of each changed weight.

    Raises:
        InputError: something is no adapter, or they change weights of different shapes.
    """
    if out.exists():
        raise InputError(f"{out} exists: choose another folder")
    adapters = [open_model(path) for path in paths]
    for adapter in adapters:
        if not is_adapter(adapter):
            raise InputError(f"{adapter.path} is no adapter: it has no {CONFIG}; merge adapters with adapters alone")
    found = [parts(adapter) for adapter in adapters]
    odd = sorted({name for _, saved in found for name in saved})
    if odd:
        raise InputError(
            f"adapters that replace whole tensors ({', '.join(odd)}) do not merge: add each to its model first"
        )
    merged = {}
    for name in sorted({name for changes, _ in found for name in changes}):
        lows = [changes.get(name) for changes, _ in found]
        shape = next((low.left.shape[0], low.right.shape[1]) for low in lows if low is not None)
        dense = [np.zeros(shape, np.float32) if low is None else low.left @ low.right for low in lows]
        if any(each.shape != shape for each in dense):
            raise InputError(f"the adapters change {name} in several shapes: {', '.join(str(e.shape) for e in dense)}")
        base = np.zeros(shape, np.float32) if rule.takes_base else None
        wanted = rank or max(low.left.shape[1] for low in lows if low is not None)
        merged[name] = truncated(rule(base, dense, name), wanted)
    _write(out, merged, json.loads((adapters[0].path / CONFIG).read_text(encoding="utf-8")))
    return {name: low.left.shape[1] for name, low in merged.items()}


@dataclass(frozen=True)
class Extracted:
    """What an adapter holds of a fine-tuned model: the rank of each weight, the share of the squared change that all of
    them reach, and the changed tensors that are not in it."""

    ranks: Mapping[str, int]
    energy: float
    left_out: tuple[str, ...]


def extract(base: Model, tuned: Model, out: Path, *, rank: int | None = None, energy: float = 0.9) -> Extracted:
    """Write what fine-tuning changed as an adapter.

    Weights of two dimensions that changed are in it, embeddings aside.

    Args:
        base: the model before.
        tuned: and after.
        out: a folder that does not exist yet.
        rank: of every change; or, where it is None,
        energy: the share of its squared norm that each must reach, with a rank of its own.

    Raises:
        InputError: models of different tensors or shapes, or two that do not differ.
    """
    if out.exists():
        raise InputError(f"{out} exists: choose another folder")
    lows: dict[str, Low] = {}
    left_out, whole, reached = [], 0.0, 0.0
    for name in common_names({str(base.path): base, str(tuned.path): tuned}):
        entry = tuned.entry(name)
        if base.entry(name).shape != entry.shape:
            raise InputError(f"tensor {name!r} is {list(base.entry(name).shape)} before and {list(entry.shape)} after")
        if not floating(entry.dtype):
            continue
        size = math.prod(entry.shape)
        change = tuned.values(name).read(0, size) - base.values(name).read(0, size)
        norm = float(change.astype(float) @ change.astype(float))
        whole += norm
        if norm and len(entry.shape) == 2 and name.endswith(".weight") and "embed" not in name:
            low = truncated(change.reshape(entry.shape).astype(np.float32), rank, energy)
            rest = change.reshape(entry.shape) - low.left @ low.right
            reached += norm - float((rest.astype(float) ** 2).sum())
            lows[name] = low
        elif norm:
            left_out.append(name)
    if not lows:
        raise InputError(f"{tuned.path} has no weight that differs from {base.path} and that an adapter could hold")
    _write(out, lows, {"base_model_name_or_path": str(base.path), "task_type": None})
    return Extracted({name: low.left.shape[1] for name, low in lows.items()}, reached / whole, tuple(left_out))


def _write(out: Path, lows: Mapping[str, Low], config: Mapping[str, Any]) -> None:
    """Write an adapter in peft's layout; the folder gets its name when all of it is there."""
    ranks = {name.removesuffix(".weight"): low.left.shape[1] for name, low in lows.items()}
    common = max(ranks.values())
    others = {name: rank for name, rank in ranks.items() if rank != common}
    settings = {
        **config,
        "peft_type": "LORA",
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "bias": "none",
        "target_modules": sorted(ranks),
    }
    tensors = {
        f"{_PREFIX}{name.removesuffix('.weight')}.lora_{half}.weight": each
        for name, low in lows.items()
        for half, each in (("A", low.right), ("B", low.left))
    }
    header, _ = safetensors.layout([(name, "F32", each.shape) for name, each in tensors.items()], {"format": "pt"})
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with (partial / "adapter_model.safetensors").open("wb") as file:
        file.write(header)
        for each in tensors.values():
            file.write(np.ascontiguousarray(each, np.float32).tobytes())
    (partial / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    partial.rename(out)
