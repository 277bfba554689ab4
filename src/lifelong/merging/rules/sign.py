"""The election of a sign for each number, and the sum of those that have it."""

from __future__ import annotations

from lifelong.merging.rule import Array, choose, namespace


def elected(vectors: list[Array]) -> Array:
    """Return the sign of the sum of `vectors`, number by number: 1 or -1; 1 where the sum is 0."""
    total = vectors[0] + 0.0
    for each in vectors[1:]:
        total += each
    return _signs(total >= 0, total)


def agreeing(weighted: list[Array], weights: list[float], signs: Array, normalize: bool) -> Array:
    """Return the sum of the numbers that have the sign in `signs`, divided by their weights if `normalize`.

    Args:
        weighted: vectors that their weights have been multiplied to; they are changed.
        weights: of these; a sum of 0 counts as 1.
        signs: 1 or -1 for each number.
        normalize: divide.
    """
    xp = namespace(signs)
    merged, zero = xp.zeros_like(signs), xp.zeros_like(signs)
    # How many agree is their weight, if all weigh 1: bytes are a quarter of what floats are to add up.
    small = xp.uint8 if all(weight == 1 for weight in weights) and len(weights) < 256 else signs.dtype
    mass = xp.zeros_like(signs, dtype=small)
    for each, weight in zip(weighted, weights, strict=True):
        each *= signs
        if normalize:
            # Positive where it agrees, and 0 where it was trimmed.
            agrees = xp.astype(each > 0, small)
            mass += agrees if weight == 1 else weight * agrees
        merged += xp.maximum(each, zero)
    merged *= signs
    return _divided(merged, xp.astype(mass, merged.dtype)) if normalize else merged


def split(weighted: Array, weight: float, normalize: bool) -> list[Array]:
    """Return what adds up, over vectors, to `of_sign`: what rises, what falls, and if `normalize` both their weights.

    Args:
        weighted: a vector that its weight has been multiplied to.
        weight: of it.
        normalize: the sum will be divided by the weights.
    """
    xp = namespace(weighted)
    zero = xp.zeros_like(weighted)
    sums = [xp.maximum(weighted, zero), xp.maximum(-weighted, zero)]
    return [*sums, *(weight * xp.astype(each > 0, weighted.dtype) for each in sums)] if normalize else sums


def of_sign(positive: Array, sums: list[Array]) -> Array:
    """Return what `agreeing` does, from the sums of what `split` returned for each vector; these are not changed.

    Args:
        positive: true where the sign is 1, false where it is -1.
        sums: two arrays, or four to divide.
    """
    rising, falling, *masses = sums
    merged = choose(positive, rising + 0.0, falling)
    merged *= _signs(positive, merged)
    return _divided(merged, choose(positive, masses[0] + 0.0, masses[1])) if masses else merged


def _signs(positive: Array, like: Array) -> Array:
    signs = namespace(like).astype(positive, like.dtype)
    signs *= 2
    signs -= 1
    return signs


def _divided(total: Array, mass: Array) -> Array:
    mass += namespace(mass).astype(mass == 0, mass.dtype)
    total /= mass
    return total
