"""What rules that see a tensor as a matrix share: singular vectors, polar factors, least squares."""

from __future__ import annotations

from typing import NamedTuple

from lifelong.merging.rule import Array, namespace

# Of the largest eigenvalue: far above the rounding of float64, far below what tells directions of data apart.
_RIDGE = 1e-10


class Singular(NamedTuple):
    """Singular vectors and values, `x = left diag(values) right`, the largest first."""

    left: Array
    values: Array
    right: Array

    def first(self, count: int) -> Singular:
        return Singular(self.left[:, :count], self.values[:count], self.right[:count])


def singular(matrix: Array) -> Singular:
    """Return the thin singular value decomposition of a matrix `[m, n]`."""
    return Singular(*namespace(matrix).linalg.svd(matrix, full_matrices=False))


def supported(found: Singular, largest: float | None = None) -> Singular:
    """Return the directions whose singular value is more than rounding.

    The others span what the matrix does not reach; which vectors a library gives for them is an accident.

    Args:
        found: of a matrix.
        largest: the singular value beside which the others are rounding; by default the largest of `found`.
    """
    xp = namespace(found.values)
    size = max(found.left.shape[0], found.right.shape[1])
    most = float(found.values[0]) if largest is None else largest
    limit = most * size * float(xp.finfo(found.values.dtype).eps)
    return found.first(int(xp.sum(found.values > limit)))


def side_by_side(parts: list[Singular]) -> Singular:
    """Return the singular vectors and values of several matrices put side by side; they are not orthogonal there."""
    xp = namespace(parts[0].values)
    return Singular(
        xp.concat([part.left for part in parts], axis=1),
        xp.concat([part.values for part in parts]),
        xp.concat([part.right for part in parts], axis=0),
    )


def polar(matrix: Array) -> Array:
    """Return the closest matrix (Frobenius) with orthonormal columns, or rows where it is wide: `U V^T` of its SVD."""
    left, _, right = singular(matrix)
    return left @ right


def nearest_minimizer(start: Array, gram: Array, product: Array) -> Array:
    """Return the `W` closest to `start` among those that minimize `sum_t ||(W - W_t) X_t^T||^2`.

    The minimizers solve `W A = B`; where A has no full rank (fewer samples than inputs, inputs that are always 0) they
    are many, and W keeps the start's values in the directions that no sample has: `start + (B - start A) A^+`.

    Args:
        start: `[outputs, inputs]`.
        gram: A, `sum_t X_t^T X_t`, `[inputs, inputs]`.
        product: B, `sum_t W_t X_t^T X_t`, `[outputs, inputs]`.
    """
    xp = namespace(start)
    wide, gram = xp.astype(start, xp.float64), xp.astype(gram, xp.float64)
    # B - start A lies in what A reaches, so a small ridge does there what the pseudo-inverse would, at a fraction of
    # its price. The trace is no less than the largest eigenvalue.
    ridge = _RIDGE * float(xp.linalg.trace(gram))
    if ridge == 0:
        return start
    rest = xp.astype(product, xp.float64) - wide @ gram
    identity = xp.eye(gram.shape[0], dtype=xp.float64, device=gram.device)
    moved = wide + xp.linalg.solve(gram + ridge * identity, rest.T).T
    return xp.astype(moved, start.dtype)
