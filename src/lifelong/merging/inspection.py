"""What experts have in common, tensor by tensor: how far each went, whether they agree, what a merge kept of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lifelong.errors import InputError
from lifelong.merging.checkpoint import Model
from lifelong.merging.formats import floating
from lifelong.merging.layers import Spot, spots
from lifelong.merging.plan import Plan, common_names
from lifelong.merging.rule import Array, Site, Stack, Values


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
    stacks = (_common(name, every, base) for name in names if floating(next(iter(every.values())).entry(name).dtype))
    yield from _each(stacks, len(experts), threads)


def inspect_merge(plan: Plan, merged: Model, *, threads: int | None = None) -> Iterator[Inspected]:
    """Yield what the experts of a merge that has been run have in common, for each tensor that a rule made.

    As `inspect`, for merges of slices, of adapters and of other vocabularies too: what is compared is what was merged.
    Norms and the like are those of `experts_of(plan)`, in that order; 0 for one that took no part in a tensor.
    """
    experts = experts_of(plan)

    def stacked() -> Iterator[Stack]:
        for job in plan.jobs:
            if job.rule is not None:
                own = {source.model: source.values for source in job.experts}
                origin = _Mean(list(own.values())) if job.base is None else job.base.values
                # One that took no part stands where changes are counted from.
                values = [own.get(name, origin) for name in experts]
                yield Stack(job.name, origin, [*values, merged.values(job.name)])

    yield from _each(stacked(), len(experts), threads)


def experts_of(plan: Plan) -> list[str]:
    """Return the models that a plan merges, without the base, in the order in which they are first met."""
    return list(dict.fromkeys(source.model for job in plan.jobs if job.rule is not None for source in job.experts))


@dataclass(frozen=True)
class _Mean:
    """The mean of the numbers of one tensor of several models."""

    values: Sequence[Values]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values[0].shape

    def read(self, start: int, stop: int, step: int = 1) -> Array:
        return np.mean([each.read(start, stop, step) for each in self.values], axis=0)


def _common(name: str, every: Mapping[str, Model], base: Model | None) -> Stack:
    """Return the tensor `name` of all models, checked to be of one shape."""
    models = {**({} if base is None else {"the base": base}), **every}
    shapes = {key: list(model.entry(name).shape) for key, model in models.items()}
    if len({tuple(shape) for shape in shapes.values()}) > 1:
        listed = ", ".join(f"{shape} in {key}" for key, shape in shapes.items())
        raise InputError(f"tensor {name!r} has several shapes: {listed}")
    return Stack(name, None if base is None else base.values(name), [model.values(name) for model in every.values()])


def _each(stacks: Iterable[Stack], experts: int, threads: int | None) -> Iterator[Inspected]:
    """Yield what is found in each of `stacks`; in each the first `experts` are experts, and one more is their merge."""
    with ThreadPoolExecutor(threads) as pool:
        for stack in stacks:
            yield _inspected(replace(stack, mapper=lambda function, sites: list(pool.map(function, sites))), experts)


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


def overall(found: Sequence[Inspected], name: str = "all") -> Inspected:
    """Return the same measures over several tensors: as of one that is all of them, one behind the other."""
    norms = np.array([each.norms for each in found])
    gram = sum(np.outer(each.norms, each.norms) * np.array(each.cosines) for each in found)
    whole = np.sqrt((norms**2).sum(axis=0))
    safe = np.where(whole > 0, whole, 1)
    sizes = np.array([np.prod(each.shape, dtype=float) for each in found])
    experts = len(found[0].kept)
    return Inspected(
        name,
        (int(sizes.sum()),),
        float(np.sqrt(sum(each.base_norm**2 for each in found))),
        tuple(whole.tolist()),
        tuple(map(tuple, (gram / np.outer(safe, safe)).tolist())),
        float(np.dot(sizes, [each.conflicts for each in found]) / max(1.0, sizes.sum())),
        tuple((gram[-1, :experts] / (safe[:experts] ** 2)).tolist()) if experts else (),
    )


def by_layer(found: Sequence[Inspected], *, kinds: bool = False) -> list[tuple[Spot, Inspected]]:
    """Return the same measures over each layer, in the order of the network.

    Args:
        found: in all tensors.
        kinds: over each kind of tensor within a layer.
    """
    placed = spots([each.name for each in found])
    groups: dict[Spot, list[Inspected]] = {}
    for each in found:
        spot = placed[each.name]
        groups.setdefault(spot if kinds else replace(spot, kind=""), []).append(each)
    return [(spot, overall(groups[spot], spot.layer)) for spot in sorted(groups)]
