"""How alike task vectors are: cosines to a reference, over a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lifelong.errors import InputError
from lifelong.merging.gram import Numbers, gram, lines
from lifelong.merging.rule import Array, Stack
from lifelong.merging.rules.task_arithmetic import task_vectors

# What a task vector is compared to: the mean of all, the mean of the other ones, or that of one expert, from 0.
Reference = Literal["mean", "peers"] | int


def cosines(stack: Stack, reference: Reference) -> Numbers:
    """Return the cosine of the angle between each task vector and its reference, `[experts]`; 0 where one is 0.

    Args:
        stack: the tensor, not empty.
        reference: what each is compared to.
    """
    (products,) = gram(stack, task_vectors, lines(stack.shape, "tensor"))
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
