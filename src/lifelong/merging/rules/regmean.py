"""Regression mean: the linear layer that best gives every expert's outputs on its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.errors import InputError
from lifelong.merging.linear_algebra import nearest_minimizer
from lifelong.merging.rule import Array, Folding, Site, Stack, namespace
from lifelong.settings import setting


@dataclass(frozen=True)
class RegMean(Folding):
    """Merge the weights of linear layers by least squares: `W = (sum_t W_t G_t) (sum_t G_t)^-1`.

    Jin et al. 2023, 2212.09849: W minimizes `sum_t ||X_t (W - W_t)^T||^2` over the inputs X_t `[samples, inputs]` that
    the layer gets in expert t on its own task, `G_t = X_t^T X_t`. As there, numbers of G_t off its diagonal are scaled
    by `alpha`. Tensors without a Gram matrix are averaged; so are the directions that no input has, where they invert a
    singular matrix. Weights are as PyTorch has them, `[outputs, inputs]`; theirs are transposed.

    RegMean++ (`lifelong.merging.collect.regmean_plus_plus`) is this rule with other Gram matrices.
    """

    family: ClassVar[str] = "data"
    paper: ClassVar[str] = "2212.09849"
    blockwise: ClassVar[bool] = False
    statistic: ClassVar[str] = "gram"

    alpha: float = setting(0.9, "scale of the Gram matrices off their diagonals, 0 to 1", ge=0, le=1)

    def survey(self, stack: Stack) -> Any:
        """Return the Gram matrices, still to be read."""
        for each in stack.statistics:
            if len(stack.shape) != 2 or each.shape != (stack.shape[1], stack.shape[1]):
                raise InputError(
                    f"tensor {stack.name!r} {list(stack.shape)} has a Gram matrix {list(each.shape)}: expected one row "
                    f"and one column for each input of a linear layer"
                )
        return stack.statistics

    def kept(self, shape: tuple[int, ...], dtype: str, informed: bool) -> list[tuple[str, tuple[int, ...]]]:
        sums = [("F64", (shape[-1], shape[-1])), ("F64", shape)] if informed else []
        return [(dtype, shape), (dtype, shape), *sums]

    def fold(
        self, state: list[Array], base: Array | None, expert: Array, index: int, site: Site, known: Any = None
    ) -> list[Array]:
        """Return `W_1`, `sum_t (W_t - W_1)`, `sum_t G_t` and `sum_t (W_t - W_1) G_t` so far."""
        xp = namespace(expert)
        first, moved, *sums = state or (expert, xp.zeros_like(expert))
        # Around the first: experts that are equal give it back to the last bit.
        change = expert - first
        moved = moved + change
        if known is None:
            return [first, moved]
        own = self._scaled(known)
        product = xp.astype(change, xp.float64) @ own
        return [first, moved, sums[0] + own, sums[1] + product] if sums else [first, moved, own, product]

    def finish(self, state: list[Array], base: Array | None, experts: int) -> Array:
        first, moved, *sums = state
        average = first + moved / experts
        if not sums:
            return average
        gram, product = sums
        xp = namespace(average)
        # From the first expert to the average, which has the say where no input reaches.
        product = product - (xp.astype(average, xp.float64) - xp.astype(first, xp.float64)) @ gram
        return average + nearest_minimizer(xp.zeros_like(average), gram, product)

    def _scaled(self, gram: Array) -> Array:
        xp = namespace(gram)
        wide = xp.astype(gram, xp.float64)
        diagonal = xp.eye(wide.shape[0], dtype=xp.float64, device=wide.device)
        return wide * (self.alpha + (1 - self.alpha) * diagonal)


def mean(arrays: list[Array]) -> Array:
    """Return the mean of `arrays`, exactly `a` where all of them are `a`; none is changed."""
    first, *others = arrays
    moved = namespace(first).zeros_like(first)
    for each in others:
        moved += each - first
    moved /= len(arrays)
    moved += first
    return moved
