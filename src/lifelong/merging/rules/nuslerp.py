"""SLERP between two models, or between their task vectors; of whole tensors, or line by line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lifelong.merging.gram import Lines, cosine, gram, lines, spread
from lifelong.merging.rule import Array, Rule, Site, Stack
from lifelong.merging.rules.linear import weighted_sum
from lifelong.merging.rules.multislerp import vectors_of
from lifelong.settings import setting

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class NuSLERP(Rule):
    """Go from one expert to the other along a great circle; `t = w_2 / (w_1 + w_2)`, or 1/2 where the weights cancel.

    mergekit's method of that name. With a base it is the task vectors that are turned. The angle is between whole
    tensors, or, without `flatten`, between vectors along the last axis; with `row_wise` along the first, as mergekit
    has it. Colinear vectors are interpolated linearly.
    """

    family: ClassVar[str] = "spherical"
    takes_base: ClassVar[bool] = True
    least: ClassVar[int] = 2
    most: ClassVar[int | None] = 2
    spelled: ClassVar[Mapping[str, str]] = {"nuslerp_flatten": "flatten", "nuslerp_row_wise": "row_wise"}
    per_expert: ClassVar[tuple[str, ...]] = ("weight",)

    weight: float | tuple[float, ...] = setting(1.0, "of each of the two experts, or one for both")
    flatten: bool = setting(True, "one angle for each tensor")
    row_wise: bool = setting(False, "without flatten: vectors along the first axis instead of the last")

    def _lines(self, shape: tuple[int, ...]) -> Lines:
        return lines(shape, "tensor" if self.flatten else "columns" if self.row_wise else "rows")

    def survey(self, stack: Stack) -> tuple[Numbers, Lines]:
        """Return the coefficients of the two vectors, `[lines, 2]`, and what they are for."""
        first, second = self.each("weight", 2)
        total = first + second
        t = second / total if abs(total) >= 1e-6 else 0.5
        over = self._lines(stack.shape)
        angle = np.arccos(cosine(gram(stack, vectors_of, over), 0, 1))
        sine = np.sin(angle)
        colinear = np.abs(sine) < 1e-8
        sine[colinear] = 1
        turned = np.stack([np.sin((1 - t) * angle) / sine, np.sin(t * angle) / sine], axis=-1)
        turned[colinear] = 1 - t, t
        return turned, over

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        coefficients, over = facts
        merged = weighted_sum(vectors_of(base, experts), spread(coefficients, over, site, experts[0]))
        if base is not None:
            merged += base
        return merged
