"""Merge rules the slow and obvious way: whole tensors, in float64, as their papers' equations have them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lifelong.merging.draws import LEVELS, draws
from lifelong.merging.rule import BLOCK, Site

Numbers = np.ndarray[Any, Any]
NAME = "layers.1.weight"


def each_of(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value] * count


def linear(base: Any, experts: list[Numbers], weight: Any = 1.0, normalize: bool = True) -> Numbers:
    weights = each_of(weight, len(experts))
    total = sum(w * each for w, each in zip(weights, experts, strict=True))
    return np.asarray(total / sum(weights) if normalize else total)


def interpolation(base: Numbers, experts: list[Numbers], t: float = 0.5) -> Numbers:
    return (1 - t) * base + t * experts[0]


def passthrough(base: Any, experts: list[Numbers], scale: float = 1.0) -> Numbers:
    return experts[0] * scale


def angle(a: Numbers, b: Numbers) -> float:
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.arccos(np.clip((a * b).sum() / norms, -1, 1) if norms else 0.0))


def turned(a: Numbers, b: Numbers, t: float, colinear: float) -> Numbers:
    """Return the point at the share `t` of the great circle from `a` to `b`, straight if the sine is small."""
    omega = angle(a, b)
    if np.sin(omega) < colinear:
        return (1 - t) * a + t * b
    return np.asarray((np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega))


def slerp(base: Numbers, experts: list[Numbers], t: float = 0.5) -> Numbers:
    return turned(base, experts[0], t, np.sin(np.arccos(0.9995)))


def nuslerp(
    base: Numbers | None, experts: list[Numbers], weight: Any = 1.0, flatten: bool = True, row_wise: bool = False
) -> Numbers:
    origin = np.zeros_like(experts[0]) if base is None else base
    first, second = (each - origin for each in experts)
    weights = each_of(weight, 2)
    t = weights[1] / sum(weights)
    if flatten or first.ndim < 2:
        return origin + turned(first, second, t, 1e-8)
    axis = 0 if row_wise else -1
    lines = zip(*(np.moveaxis(each, axis, -1).reshape(-1, each.shape[axis]) for each in (first, second)), strict=True)
    merged = np.array([turned(a, b, t, 1e-8) for a, b in lines])
    return origin + np.moveaxis(merged.reshape(np.moveaxis(first, axis, -1).shape), -1, axis)


def multislerp(base: Numbers | None, experts: list[Numbers], weight: Any = 1.0) -> Numbers:
    origin = np.zeros_like(experts[0]) if base is None else base
    vectors = [each - origin for each in experts]
    if len(vectors) == 1:
        return experts[0]
    weights = np.array(each_of(weight, len(vectors))) / sum(each_of(weight, len(vectors)))
    norms = [np.linalg.norm(each) for each in vectors]
    units = [each / norm for each, norm in zip(vectors, norms, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    tangent = sum(w * (u - (u * mean).sum() * mean) for w, u in zip(weights, units, strict=True))
    turn = np.linalg.norm(tangent)
    result = np.cos(turn) * mean + np.sinc(turn / np.pi) * tangent
    return np.asarray(origin + result * sum(w * n for w, n in zip(weights, norms, strict=True)))


def karcher(base: Any, experts: list[Numbers]) -> Numbers:
    """Return the mean to which many small steps down the sum of squared angles lead."""
    norms = [np.linalg.norm(each) for each in experts]
    units = [each / norm for each, norm in zip(experts, norms, strict=True)]
    mean = np.mean(units, axis=0)
    for _ in range(300):
        mean = mean / np.linalg.norm(mean)
        step = np.zeros_like(mean)
        for unit in units:
            omega = angle(mean, unit)
            step += (unit - np.cos(omega) * mean) / np.sinc(omega / np.pi) / len(units)
        mean = mean + 0.5 * step
    return np.asarray(mean / np.linalg.norm(mean) * np.mean(norms))


def task_arithmetic(
    base: Numbers, experts: list[Numbers], weight: Any = 1.0, normalize: bool = False, scale: float = 1.0
) -> Numbers:
    weights = each_of(weight, len(experts))
    total = sum(w * (each - base) for w, each in zip(weights, experts, strict=True))
    return np.asarray(base + scale * total / (sum(weights) if normalize else 1))


def layer_wise(base: Numbers, experts: list[Numbers], coefficients: dict[str, Any] | None = None) -> Numbers:
    found = next(each for pattern, each in (coefficients or {"*": 0.3}).items() if pattern == "*" or pattern in NAME)
    return task_arithmetic(base, experts, weight=found)


def added(
    base: Numbers,
    sparse: Sequence[Numbers],
    elects: bool,
    weight: Any = 1.0,
    normalize: bool = False,
    scale: float = 1.0,
) -> Numbers:
    """Return the base plus sparse task vectors, number by number."""
    weights = each_of(weight, len(sparse))
    merged = np.array(base, float).reshape(-1)
    for place, numbers in enumerate(zip(*(each.reshape(-1) for each in sparse), strict=True)):
        weighted = [w * number for w, number in zip(weights, numbers, strict=True)]
        used = range(len(numbers))
        if elects:
            sign = 1 if sum(weighted) >= 0 else -1
            used = [t for t in used if weighted[t] * sign > 0]
        divisor = sum(weights[t] for t in used) if normalize else 1
        merged[place] += scale * sum(weighted[t] for t in used) / (divisor or 1)
    return merged.reshape(base.shape)


def rescaled(before: Numbers, after: Numbers, norm: str | None) -> Numbers:
    measures: dict[str, Callable[[Numbers], float]] = {
        "l1": lambda x: float(np.abs(x).sum()),
        "l2": lambda x: float(np.linalg.norm(x)),
        "linf": lambda x: float(np.abs(x).max()),
    }
    if norm is None or not after.any():
        return after
    return after * measures[norm](before) / measures[norm](after)


def trimmed(vector: Numbers, density: float, gamma: float = 0.0) -> Numbers:
    """Return the share `density` of the vector: without its `gamma` largest numbers, and then without the smallest."""
    if density >= 1:
        return vector
    ordered = np.sort(np.abs(vector), axis=None)[::-1]
    keep = max(int(density * vector.size), int(density > 0))
    if keep == 0:
        return np.zeros_like(vector)
    top = min(int(gamma * vector.size), vector.size - keep)
    magnitude = np.abs(vector)
    return np.where((magnitude <= ordered[top]) & (magnitude >= ordered[top + keep - 1]), vector, 0)


def _trimming(elects: bool, normally: bool, gammas: bool) -> Callable[..., Numbers]:
    def rule(
        base: Numbers,
        experts: list[Numbers],
        density: Any = 1.0,
        gamma: Any = 0.01,
        rescale: bool = False,
        rescale_norm: str = "l1",
        normalize: bool = normally,
        **more: Any,
    ) -> Numbers:
        count = len(experts)
        sparse = []
        for each, d, g in zip(experts, each_of(density, count), each_of(gamma, count), strict=True):
            kept = trimmed(each - base, d, g if gammas else 0)
            sparse.append(rescaled(each - base, kept, rescale_norm if rescale else None))
        return added(base, sparse, elects, normalize=normalize, **more)

    return rule


ties = _trimming(True, True, False)
breadcrumbs = _trimming(False, False, True)
breadcrumbs_ties = _trimming(True, False, True)


def blocks_of(seed: int, expert: int, size: int) -> Numbers:
    """Return the draws for a tensor, which begin anew at each block."""
    blocks = [draws(seed, Site(NAME, at), expert, min(BLOCK, size - at)) for at in range(0, size, BLOCK)]
    return np.concatenate(blocks).astype(float)


def _dare(elects: bool) -> Callable[..., Numbers]:
    def rule(
        base: Numbers,
        experts: list[Numbers],
        density: Any = 1.0,
        rescale: bool = True,
        rescale_norm: str = "expectation",
        seed: int = 0,
        **more: Any,
    ) -> Numbers:
        sparse = []
        for t, (each, d) in enumerate(zip(experts, each_of(density, len(experts)), strict=True)):
            kept = (each - base) * (blocks_of(seed, t, each.size) < round(d * LEVELS)).reshape(each.shape)
            if rescale and rescale_norm == "expectation":
                kept /= round(d * LEVELS) / LEVELS
            sparse.append(rescaled(each - base, kept, rescale_norm if rescale and rescale_norm[0] == "l" else None))
        return added(base, sparse, elects, **more)

    return rule


dare_linear = _dare(False)
dare_ties = _dare(True)


def keep_probabilities(vector: Numbers, density: float, epsilon: float) -> Numbers:
    rows = vector.reshape(vector.shape[0], -1) if vector.ndim > 1 else vector.reshape(1, -1)
    found = np.empty(rows.shape)
    for row, values in enumerate(rows):
        order = sorted(range(len(values)), key=lambda place: (abs(values[place]), place))
        for rank, place in enumerate(order):
            share = rank / (len(values) - 1) if len(values) > 1 else 0.5
            found[row, place] = density - epsilon + 2 * epsilon * share
    return np.rint(found.reshape(vector.shape) * LEVELS) / LEVELS


def _della(elects: bool, normally: bool) -> Callable[..., Numbers]:
    def rule(
        base: Numbers,
        experts: list[Numbers],
        density: Any = 1.0,
        epsilon: Any = 0.15,
        rescale: bool = True,
        rescale_norm: str = "l1",
        normalize: bool = normally,
        seed: int = 0,
        **more: Any,
    ) -> Numbers:
        sparse, count = [], len(experts)
        settings = zip(experts, each_of(density, count), each_of(epsilon, count), strict=True)
        for t, (each, d, e) in enumerate(settings):
            vector = each - base
            if d < 1:
                # Draws begin anew every so many whole rows as make about a block.
                width = vector.size // vector.shape[0] if vector.ndim > 1 else vector.size
                step = width * max(1, BLOCK // width)
                drawn = np.concatenate(
                    [draws(seed, Site(NAME, at), t, min(step, vector.size - at)) for at in range(0, vector.size, step)]
                )
                chance = keep_probabilities(vector, d, e)
                vector = vector * (drawn.reshape(vector.shape) < chance * LEVELS)
                if rescale and rescale_norm == "expectation":
                    vector = vector / chance
            sparse.append(rescaled(each - base, vector, rescale_norm if rescale and rescale_norm[0] == "l" else None))
        return added(base, sparse, elects, normalize=normalize, **more)

    return rule


della = _della(True, True)
della_linear = _della(False, False)


def sce(base: Numbers, experts: list[Numbers], select_topk: float = 1.0) -> Numbers:
    vectors = np.array([each - base for each in experts])
    if select_topk < 1:
        variance = vectors.var(axis=0)
        keep = int(np.count_nonzero(variance) * select_topk)
        least = np.sort(variance, axis=None)[::-1][keep - 1] if keep else np.inf
        vectors = vectors * (variance >= least)
    energy = np.array([(each**2).sum() for each in vectors])
    weights = energy / energy.sum() if energy.any() else np.full(len(energy), 1 / len(energy))
    signs = np.where(vectors.sum(axis=0) >= 0, 1, -1)
    agree = (vectors * signs > 0) * weights.reshape(-1, *[1] * base.ndim)
    mass = agree.sum(axis=0)
    return np.asarray(base + (agree * vectors).sum(axis=0) / np.where(mass > 0, mass, 1))


def sign_consensus(
    base: Numbers, experts: list[Numbers], agreement: float = 1.0, weight: Any = 1.0, scale: float = 1.0
) -> Numbers:
    weights = each_of(weight, len(experts))
    merged = np.array(base, float).reshape(-1)
    for place, numbers in enumerate(zip(*((each - base).reshape(-1) for each in experts), strict=True)):
        for sign in (1, -1):
            used = [t for t, number in enumerate(numbers) if number * sign > 0]
            if used and len(used) >= round(agreement * len(numbers), 6):
                merged[place] += scale * sum(weights[t] * numbers[t] for t in used) / sum(weights[t] for t in used)
    return merged.reshape(base.shape)


def magmax(base: Numbers, experts: list[Numbers], scale: float = 0.5) -> Numbers:
    vectors = np.array([each - base for each in experts])[::-1]
    largest = np.abs(vectors).argmax(axis=0)
    return np.asarray(base + scale * np.take_along_axis(vectors, largest[None], axis=0)[0])


def maxabs(base: Numbers, experts: list[Numbers], scale: float = 1.0) -> Numbers:
    return magmax(base, experts, scale)


def randmix(base: Numbers, experts: list[Numbers], scale: float = 1.0, seed: int = 0) -> Numbers:
    merged = np.array(base, float).reshape(-1)
    drawn = [blocks_of(seed, t, base.size) / LEVELS for t in range(len(experts))]
    for place, numbers in enumerate(zip(*((each - base).reshape(-1) for each in experts), strict=True)):
        taken = [t for t in range(len(experts)) if t == 0 or drawn[t][place] < round(LEVELS / (t + 1)) / LEVELS]
        merged[place] += scale * numbers[taken[-1]]
    return merged.reshape(base.shape)


def model_stock(base: Numbers, experts: list[Numbers], filter_wise: bool = False) -> Numbers:
    count = len(experts)
    if filter_wise and base.ndim > 1:
        rows = [each.reshape(-1, each.shape[-1]) for each in (base, *experts)]
        merged = [model_stock(row[0], list(row[1:])) for row in zip(*rows, strict=True)]
        return np.array(merged).reshape(base.shape)
    vectors = [each - base for each in experts]
    pairs = list(itertools.combinations(vectors, 2))
    cosine = sum(np.cos(angle(a, b)) if a.any() and b.any() else 0.0 for a, b in pairs) / len(pairs)
    divisor = 1 + (count - 1) * cosine
    share = count * cosine / divisor if divisor > 1e-6 else 0
    return np.asarray(base + share * sum(vectors) / count)


def nearswap(base: Numbers, experts: list[Numbers], t: float = 0.001) -> Numbers:
    gap = np.abs(base - experts[0])
    weight = np.clip(t / np.maximum(gap, 1e-12), 0, 1)
    return np.asarray(weight * experts[0] + (1 - weight) * base)


def arcee_fusion(base: Numbers, experts: list[Numbers]) -> Numbers:
    new, old = np.atleast_1d(experts[0]), np.atleast_1d(base)

    def probabilities(rows: Numbers) -> Numbers:
        powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True) + 1e-8)

    p, q = probabilities(new), probabilities(old)
    importance = np.abs(new - old) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    ordered = np.sort(importance, axis=None)
    q1, q2, q3 = (ordered[int(share * (ordered.size - 1))] for share in (0.25, 0.5, 0.75))
    return np.where(importance >= q2 + 1.5 * (q3 - q1), new, old).reshape(base.shape)
