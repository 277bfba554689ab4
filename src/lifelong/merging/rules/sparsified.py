"""What rules have in common that thin out task vectors before they add them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from lifelong.errors import InputError
from lifelong.merging.rule import Array, Rule, Site, Stack, as_numpy, name_of
from lifelong.merging.rules.linear import weighted_sum
from lifelong.merging.rules.sign import agreeing, elected
from lifelong.merging.rules.task_arithmetic import INT8_MASK, task_vectors
from lifelong.settings import setting

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sparsified(Rule):
    """Sparsify each task vector to `tau'_t`, then add them to the base; abstract.

    Without election: `theta_0 + lambda sum_t w_t tau'_t`, divided by `sum_t w_t` where `normalize` is set. With it
    (`elects`, as TIES does): number by number over the experts A alone whose sparse number has the sign of
    `sum_t w_t tau'_t`, divided by `sum_{t in A} w_t` where `normalize` is set. A divisor of 0 counts as 1.

    A rule of this kind defines `sparsify`, and `limits` where that must know something of the whole tensor.
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

    def limits(self, stack: Stack) -> Any:
        """Return what tells the numbers that are kept from those that are dropped; None by default."""
        return None

    def sparsify(self, vectors: list[Array], limits: Any, site: Site) -> None:
        """Drop numbers of one block of the task vectors, in place; rescale them if it is the expectation's."""
        raise NotImplementedError

    @property
    def keeps_expectation(self) -> bool:
        """Whether each number that is kept is divided by its probability of being kept."""
        return self.rescale and self.rescale_norm == "expectation"

    def survey(self, stack: Stack) -> tuple[Any, list[float]]:
        """Return the limits, and what to multiply each sparse task vector by."""
        limits = self.limits(stack)
        if not self.rescale or self.keeps_expectation:
            return limits, [1.0] * len(stack.experts)

        def of_block(base: Array | None, experts: list[Array], site: Site) -> Numbers:
            vectors = task_vectors(base, experts)
            before = [_measure(each, self.rescale_norm) for each in vectors]
            self.sparsify(vectors, limits, site)
            return np.array([before, [_measure(each, self.rescale_norm) for each in vectors]])

        blocks = stack.map(of_block)
        before, after = np.max(blocks, axis=0) if self.rescale_norm == "linf" else sum(blocks[1:], blocks[0])
        factors = before / np.where(after > 0, after, before + (before == 0))
        return limits, (np.sqrt(factors) if self.rescale_norm == "l2" else factors).tolist()

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        limits, factors = facts
        weights = self.each("weight", len(experts))
        vectors = task_vectors(base, experts)
        self.sparsify(vectors, limits, site)
        if self.elects:
            for each, weight, factor in zip(vectors, weights, factors, strict=True):
                if weight * factor != 1:
                    each *= weight * factor
            merged = agreeing(vectors, weights, elected(vectors), self.normalize)
            merged *= self.scale
        else:
            scale = self.scale / ((sum(weights) or 1.0) if self.normalize else 1.0)
            merged = weighted_sum(
                vectors, [weight * factor * scale for weight, factor in zip(weights, factors, strict=True)]
            )
        merged += base
        return merged


def _measure(array: Array, norm: str) -> float:
    """Return what adds up, or is maximised, over blocks to the norm of a tensor (its square, for l2)."""
    numbers = np.abs(as_numpy(array))
    if norm == "linf":
        return float(numbers.max())
    return float((np.square(numbers, dtype=np.float64) if norm == "l2" else numbers).sum(dtype=np.float64))
