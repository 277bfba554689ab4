"""What rules have in common that thin out task vectors before they add them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from lifelong.errors import InputError
from lifelong.merging.rule import Array, Folding, Site, Stack, as_numpy, name_of
from lifelong.merging.rules.linear import added, weighted_sum
from lifelong.merging.rules.sign import agreeing, elected, of_sign, split
from lifelong.merging.rules.task_arithmetic import INT8_MASK, task_vectors
from lifelong.settings import setting

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sparsified(Folding):
    """Sparsify each task vector to `tau'_t`, then add them to the base; abstract.

    Without election: `theta_0 + lambda sum_t w_t tau'_t`, divided by `sum_t w_t` where `normalize` is set. With it
    (`elects`, as TIES does): number by number over the experts A alone whose sparse number has the sign of
    `sum_t w_t tau'_t`, divided by `sum_{t in A} w_t` where `normalize` is set. A divisor of 0 counts as 1.

    A rule of this kind defines `limits` and `sparsify`. Experts that come one at a time are added up as they come: what
    rises apart from what falls, where a sign is yet to be elected.
    """

    family: ClassVar[str] = "task vectors"
    needs_base: ClassVar[bool] = True
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}
    ignored: ClassVar[Mapping[str, str]] = {"int8_mask": INT8_MASK}
    per_expert: ClassVar[tuple[str, ...]] = ("weight", "density")
    elects: ClassVar[bool] = False
    random: ClassVar[bool] = False

    weight: float | tuple[float, ...] = setting(1.0, "of each expert, or one for all")
    density: float | tuple[float, ...] = setting(1.0, "share of each task vector that is kept, 0 to 1", ge=0, le=1)
    normalize: bool = setting(False, "divide by the sum of the weights (of the experts that agree)")
    rescale: bool = setting(False, "make up for what was dropped")
    rescale_norm: Literal["expectation", "l1", "l2", "linf"] = setting(
        "l1", "what rescaling restores: the expectation of each number, or a norm of the tensor"
    )
    scale: float = setting(1.0, "lambda, the scale of the merged task vector")

    def check(self, experts: int) -> None:
        super().check(experts)
        weights = self.each("weight", experts)
        if self.normalize and not self.elects and any(weights) and abs(sum(weights)) < 1e-8:
            raise InputError(f"rule {name_of(self)}: the weights sum to zero, and normalize would divide by it")
        if self.rescale and self.rescale_norm == "expectation" and not self.random:
            raise InputError(
                f"rule {name_of(self)}: rescale_norm = 'expectation' goes with random dropping; here it is a norm: "
                f"l1, l2 or linf"
            )

    def limits(self, stack: Stack) -> Sequence[Any]:
        """Return, for each expert, what tells the numbers of its task vector that are kept from those that are not."""
        raise NotImplementedError

    def sparsify(self, vector: Array, limit: Any, site: Site) -> None:
        """Drop numbers of one block of a task vector, in place; rescale them if it is the expectation's."""
        raise NotImplementedError

    @property
    def keeps_expectation(self) -> bool:
        """Whether each number that is kept is divided by its probability of being kept."""
        return self.rescale and self.rescale_norm == "expectation"

    def survey(self, stack: Stack) -> tuple[Sequence[Any], list[float]]:
        """Return the limits, and what to multiply each sparse task vector by."""
        limits = self.limits(stack)
        if not self.rescale or self.keeps_expectation:
            return limits, [1.0] * len(stack.experts)

        def of_block(base: Array | None, experts: list[Array], site: Site) -> Numbers:
            vectors = task_vectors(base, experts)
            before = [_measure(each, self.rescale_norm) for each in vectors]
            for each, limit in zip(vectors, limits, strict=True):
                self.sparsify(each, limit, site)
            return np.array([before, [_measure(each, self.rescale_norm) for each in vectors]])

        blocks = stack.map(of_block)
        before, after = np.max(blocks, axis=0) if self.rescale_norm == "linf" else sum(blocks[1:], blocks[0])
        factors = before / np.where(after > 0, after, before + (before == 0))
        return limits, (np.sqrt(factors) if self.rescale_norm == "l2" else factors).tolist()

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        limits, factors = facts
        weights = self.each("weight", len(experts))
        vectors = task_vectors(base, experts)
        for each, limit in zip(vectors, limits, strict=True):
            self.sparsify(each, limit, site)
        shares = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
        if not self.elects:
            return self._moved(base, weighted_sum(vectors, shares), len(experts))
        for each, share in zip(vectors, shares, strict=True):
            if share != 1:
                each *= share
        return self._moved(base, agreeing(vectors, weights, elected(vectors), self.normalize), len(experts))

    def kept(self, shape: tuple[int, ...], dtype: str, informed: bool) -> list[tuple[str, tuple[int, ...]]]:
        return [(dtype, shape)] * (1 if not self.elects else 5 if self.normalize else 3)

    def known(self, facts: Any, number: int, expert: Array, site: Site) -> tuple[Any, float]:
        limits, factors = facts
        return limits[number], factors[number]

    def fold(
        self, state: list[Array], base: Array | None, expert: Array, index: int, site: Site, known: Any = None
    ) -> list[Array]:
        """Return the sum of the sparse task vectors so far; with an election, also what `split` adds up to."""
        limit, factor = known
        expert -= base
        self.sparsify(expert, limit, site)
        weight = self.of_expert("weight", index)
        if not self.elects:
            return [added(state, expert, weight * factor)]
        if weight * factor != 1:
            expert *= weight * factor
        new = [expert, *split(expert, weight, self.normalize)]
        for kept, each in zip(state, new, strict=False):
            kept += each
        return state or new

    def finish(self, state: list[Array], base: Array | None, experts: int) -> Array:
        total, *sums = state
        return self._moved(base, of_sign(total >= 0, sums) if self.elects else total + 0.0, experts)

    def _moved(self, base: Array | None, change: Array, experts: int) -> Array:
        """Return the base and the merged change of as many experts, in the memory of the change."""
        divides = self.normalize and not self.elects
        change *= self.scale / ((sum(self.each("weight", experts)) or 1.0) if divides else 1.0)
        change += base
        return change


def _measure(array: Array, norm: str) -> float:
    """Return what adds up, or is maximised, over blocks to the norm of a tensor (its square, for l2)."""
    numbers = np.abs(as_numpy(array))
    if norm == "linf":
        return float(numbers.max())
    return float((np.square(numbers, dtype=np.float64) if norm == "l2" else numbers).sum(dtype=np.float64))
