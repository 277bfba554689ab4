"""How alike task vectors are: inner products over a tensor, and cosines to a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from lifelong.errors import InputError
from lifelong.merging.rule import Array, Site, Stack, namespace
from lifelong.merging.rules.task_arithmetic import task_vectors

# What a task vector is compared to: the mean of all, the mean of the other ones, or that of one expert, from 0.
Reference = Literal["mean", "peers"] | int

Numbers = np.ndarray[Any, Any]


def inner_products(stack: Stack) -> Numbers:
    """Return `<tau_s, tau_t>` over the tensor for all pairs of experts, `[experts, experts]`, in float64."""

    def of_block(base: Array | None, experts: list[Array], site: Site) -> Numbers:
        xp = namespace(experts[0])
        rows = xp.stack([xp.astype(each, xp.float64) for each in task_vectors(base, experts)])
        return np.array((rows @ rows.T).tolist())

    count = len(stack.experts)
    return sum(stack.map(of_block), np.zeros((count, count)))


def cosines(products: Numbers, reference: Reference) -> Numbers:
    """Return the cosine of the angle between each task vector and its reference, `[experts]`; 0 where one is 0.

    Args:
        products: what `inner_products` returned.
        reference: what each is compared to.
    """
    count = len(products)
    # Row t has the coefficients of the task vectors in what expert t is compared to.
    if reference == "mean":
        rows = np.full((count, count), 1 / count)
    elif reference == "peers":
        rows = (1 - np.eye(count)) / max(1, count - 1)
    else:
        rows = np.tile(np.eye(count)[reference], (count, 1))
    along = np.einsum("ts,st->t", rows, products)
    squares = np.einsum("ts,su,tu->t", rows, products, rows) * np.diag(products)
    found = np.zeros(count)
    positive = squares > 0
    found[positive] = np.clip(along[positive] / np.sqrt(squares[positive]), -1, 1)
    return found


def weighted(base: Array | None, experts: list[Array], weights: Sequence[float]) -> Array:
    """Return `theta_0 + sum_t w_t tau_t`, in the memory of the first expert; the experts are changed."""
    first, *others = task_vectors(base, experts)
    first *= weights[0]
    for each, weight in zip(others, weights[1:], strict=True):
        each *= weight
        first += each
    first += base
    return first


def check_index(rule: str, setting: str, value: object, experts: int) -> None:
    """Refuse a setting that names an expert that is not there; words are not looked at."""
    if isinstance(value, int) and not 0 <= value < experts:
        raise InputError(f"rule {rule}: {setting} = {value} names no expert: there are {experts}, counted from 0")
