"""The election of a sign for each number, and the sum of those that have it."""

from __future__ import annotations

from lifelong.merging.rule import Array, namespace


def elected(vectors: list[Array]) -> Array:
    """Return the sign of the sum of `vectors`, number by number: 1 or -1; 1 where the sum is 0."""
    total = vectors[0] + 0.0
    for each in vectors[1:]:
        total += each
    signs = namespace(total).astype(total >= 0, total.dtype)
    signs *= 2
    signs -= 1
    return signs


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
    # How many agree, of those that have the same weight: bytes are a quarter of what floats are to add up.
    small = xp.uint8 if len(weighted) < 256 else xp.int32
    heads: dict[float, Array] = {}
    for each, weight in zip(weighted, weights, strict=True):
        each *= signs
        if normalize:
            # Positive where it agrees, and 0 where it was trimmed.
            agrees = xp.astype(each > 0, small)
            heads[weight] = heads[weight] + agrees if weight in heads else agrees
        merged += xp.maximum(each, zero)
    merged *= signs
    if normalize:
        mass = zero
        for weight, count in heads.items():
            mass += weight * xp.astype(count, mass.dtype)
        mass += xp.astype(mass == 0, mass.dtype)
        merged /= mass
    return merged
