"""What experts have in common, tensor by tensor: how far each went, whether they agree, what a merge kept of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lifelong.errors import InputError
from lifelong.merging.checkpoint import Model
from lifelong.merging.formats import floating
from lifelong.merging.plan import common_names
from lifelong.merging.rule import Array, Site, Stack


@dataclass(frozen=True)
class Inspected:
    """What was found in one tensor.

    Args:
        name: of the tensor.
        shape: of it.
        base_norm: of the base, or of the mean of the experts where there is no base.
        norms: of the task vector of each expert, and of the merged one last, if there is one.
        cosines: between task vectors, `[experts, experts]`, the merged one last; 0 where one of them is 0.
        conflicts: share of the numbers that experts move both up and down.
        kept: of each expert, `<tau_merged, tau_t> / ||tau_t||^2`: 1 where the merge went all of its way; empty without
            a merged model, 0 where the expert did not move.
    """

    name: str
    shape: tuple[int, ...]
    base_norm: float
    norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    conflicts: float
    kept: tuple[float, ...]


def inspect(
    experts: Mapping[str, Model],
    base: Model | None = None,
    merged: Model | None = None,
    *,
    threads: int | None = None,
) -> Iterator[Inspected]:
    """Yield what experts have in common, for each tensor of fractions in the order of the files.

    Args:
        experts: two or more, or one with a base.
        base: what task vectors are counted from; the mean of the experts where there is none.
        merged: the result of merging them, to see how much of each it kept.
        threads: workers; by default as many as there are processors.

    Raises:
        InputError: too few models, or models of different tensors or shapes.
    """
    if len(experts) + (base is not None) < 2:
        raise InputError("inspecting takes two models, or one and a base")
    every = {**experts, **({} if merged is None else {"the merged model": merged})}
    names = common_names({**({} if base is None else {"the base": base}), **every})
    with ThreadPoolExecutor(threads) as pool:
        for name in names:
            first = next(iter(every.values())).entry(name)
            odd = {
                key: list(model.entry(name).shape)
                for key, model in every.items()
                if model.entry(name).shape != first.shape
            }
            if odd or (base is not None and base.entry(name).shape != first.shape):
                raise InputError(
                    f"tensor {name!r} has several shapes: {list(first.shape)} and {odd or 'that of the base'}"
                )
            if floating(first.dtype):
                stack = Stack(
                    name,
                    None if base is None else base.values(name),
                    [model.values(name) for model in every.values()],
                    lambda function, sites: list(pool.map(function, sites)),
                )
                yield _inspected(stack, len(experts))


def _inspected(stack: Stack, experts: int) -> Inspected:
    def of_block(base: Array | None, models: list[Array], site: Site) -> tuple[Any, float, int]:
        origin = np.mean(models[:experts], axis=0) if base is None else base
        vectors = np.stack(models) - origin
        up, down = (vectors[:experts] > 0).any(axis=0), (vectors[:experts] < 0).any(axis=0)
        return (vectors @ vectors.T).astype(float), float(origin @ origin), int(np.count_nonzero(up & down))

    blocks = stack.map(of_block)
    gram = np.sum([block[0] for block in blocks], axis=0) if blocks else np.zeros((len(stack.experts),) * 2)
    norms = np.sqrt(np.diag(gram))
    safe = np.where(norms > 0, norms, 1)
    with_merged = len(stack.experts) > experts
    return Inspected(
        stack.name,
        stack.shape,
        float(np.sqrt(sum(block[1] for block in blocks))),
        tuple(norms.tolist()),
        tuple(map(tuple, (gram / np.outer(safe, safe)).tolist())),
        sum(block[2] for block in blocks) / max(1, stack.size),
        tuple((gram[-1, :experts] / (safe[:experts] ** 2)).tolist()) if with_merged else (),
    )


def overall(found: Sequence[Inspected]) -> Inspected:
    """Return the same measures over whole models: as of one tensor that is all of them, one behind the other."""
    norms = np.array([each.norms for each in found])
    gram = sum(np.outer(each.norms, each.norms) * np.array(each.cosines) for each in found)
    whole = np.sqrt((norms**2).sum(axis=0))
    safe = np.where(whole > 0, whole, 1)
    sizes = np.array([np.prod(each.shape, dtype=float) for each in found])
    experts = len(found[0].kept)
    return Inspected(
        "all",
        (int(sizes.sum()),),
        float(np.sqrt(sum(each.base_norm**2 for each in found))),
        tuple(whole.tolist()),
        tuple(map(tuple, (gram / np.outer(safe, safe)).tolist())),
        float(np.dot(sizes, [each.conflicts for each in found]) / max(1.0, sizes.sum())),
        tuple((gram[-1, :experts] / (safe[:experts] ** 2)).tolist()) if experts else (),
    )
