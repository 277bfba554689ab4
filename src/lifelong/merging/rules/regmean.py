"""Regression mean: the linear layer that best gives every expert's outputs on its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.errors import InputError
from lifelong.merging.linear_algebra import nearest_minimizer
from lifelong.merging.rule import Array, Rule, Site, Stack, Values, namespace
from lifelong.settings import setting


@dataclass(frozen=True)
class RegMean(Rule):
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

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        average = mean(experts)
        if not facts:
            return average
        xp = namespace(average)
        gram = xp.zeros((average.shape[1],) * 2, dtype=xp.float64, device=average.device)
        product = xp.zeros(average.shape, dtype=xp.float64, device=average.device)
        for expert, values in zip(experts, facts, strict=True):
            one = self._gram(values, average.shape[1])
            gram += one
            # Around the average: experts that are equal give it back to the last bit.
            product += xp.astype(expert - average, xp.float64) @ one
        return average + nearest_minimizer(xp.zeros_like(average), gram, product)

    def _gram(self, values: Values, inputs: int) -> Array:
        read = values.read(0, inputs * inputs)
        xp = namespace(read)
        gram = xp.astype(xp.reshape(read, (inputs, inputs)), xp.float64)
        diagonal = xp.eye(inputs, dtype=xp.float64, device=gram.device)
        return gram * (self.alpha + (1 - self.alpha) * diagonal)


def mean(arrays: list[Array]) -> Array:
    """Return the mean of `arrays`, exactly `a` where all of them are `a`; none is changed."""
    first, *others = arrays
    moved = namespace(first).zeros_like(first)
    for each in others:
        moved += each - first
    moved /= len(arrays)
    moved += first
    return moved
