"""Merging only what agrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from lifelong.merging.rule import Array, Rule, Site, Stack
from lifelong.merging.similarity import Reference, check_index, cosines, weighted
from lifelong.settings import setting


@dataclass(frozen=True)
class Selective(Rule):
    """Average, tensor by tensor, the experts whose task vectors agree: `theta_0 + lambda mean_{t in A} tau_t`.

    A holds the experts t with `cos(tau_t, reference) >= threshold`. A tensor in which none passes is the mean of all,
    the base's, or the best expert's. Ours; no paper defines it.
    """

    family: ClassVar[str] = "similarity"
    needs_base: ClassVar[bool] = True
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}

    threshold: float = setting(0.8, "least cosine similarity of a task vector that is kept, -1 to 1", ge=-1, le=1)
    reference: Reference = setting("mean", "mean of the task vectors, peers (of the others), or an expert from 0")
    otherwise: Literal["all", "base", "best"] | int = setting(
        "all", "where none passes: the mean of all, the base, the best aligned expert, or an expert's number from 0"
    )
    scale: float = setting(1.0, "lambda, the scale of the mean of the task vectors")

    def check(self, experts: int) -> None:
        super().check(experts)
        check_index("selective", "reference", self.reference, experts)
        check_index("selective", "otherwise", self.otherwise, experts)

    def survey(self, stack: Stack) -> list[float]:
        """Return the weight of each expert."""
        similar = cosines(stack, self.reference)
        # Parallel vectors have cosine 1 but for the rounding of float64, which no threshold should see.
        kept = similar >= self.threshold - 1e-12
        if not kept.any():
            kept = self._otherwise(similar)
        return [float(weight) for weight in kept / max(1, kept.sum())]

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        return weighted(base, experts, [self.scale * weight for weight in facts])

    def _otherwise(self, similar: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self.otherwise == "all":
            return np.ones(len(similar), bool)
        if self.otherwise == "base":
            return np.zeros(len(similar), bool)
        best = int(similar.argmax()) if self.otherwise == "best" else self.otherwise
        chosen: np.ndarray[Any, Any] = np.arange(len(similar)) == best
        return chosen
