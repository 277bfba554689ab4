"""The election of a sign for each number, and the sum of those that have it."""

from __future__ import annotations

from lifelong.merging.rule import Array, namespace


def elected(vectors: list[Array]) -> Array:
    """Return the sign of the sum of `vectors`, number by number: 1 or -1; 1 where the sum is 0."""
    xp = namespace(vectors[0])
    total = xp.zeros_like(vectors[0])
    for each in vectors:
        total += each
    signs = xp.astype(total >= 0, total.dtype)
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
    merged, mass = xp.zeros_like(signs), xp.zeros_like(signs)
    for each, weight in zip(weighted, weights, strict=True):
        each *= signs
        # Positive where it agrees, and 0 where it was trimmed.
        agrees = xp.astype(each > 0, signs.dtype)
        each *= agrees
        merged += each
        if normalize:
            agrees *= weight
            mass += agrees
    merged *= signs
    if normalize:
        mass += xp.astype(mass == 0, mass.dtype)
        merged /= mass
    return merged
