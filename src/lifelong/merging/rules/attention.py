"""Attention over experts, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lifelong.merging.rule import Array, Rule, Site, Stack
from lifelong.merging.similarity import Reference, check_index, cosines, weighted
from lifelong.settings import setting


@dataclass(frozen=True)
class Attention(Rule):
    """Weigh the task vectors of each tensor by attention: `theta_0 + lambda sum_t w_t tau_t`.

    `w_t = softmax_t(<q, tau_t> / (||q|| ||tau_t|| temperature))`: keys are the task vectors, the query q is their mean
    or the task vector of one expert. A high temperature gives the average of the experts, a low one the expert that is
    best aligned with the query. Ours; no paper defines it.
    """

    family: ClassVar[str] = "similarity"
    needs_base: ClassVar[bool] = True
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}

    query: Reference = setting("mean", "mean of the task vectors, peers (of the others), or an expert's number from 0")
    # Cosines lie within -1 and 1: at 1 the weights hardly differ, at 0.01 one expert has all. A guess between.
    temperature: float = setting(0.1, "of the softmax; high is the average, low the best aligned expert", gt=0)
    scale: float = setting(1.0, "lambda, the scale of the weighted mean of the task vectors")

    def check(self, experts: int) -> None:
        super().check(experts)
        check_index("attention", "query", self.query, experts)

    def survey(self, stack: Stack) -> list[float]:
        """Return the weight of each expert."""
        scores = cosines(stack, self.query) / self.temperature
        raised = np.exp(scores - scores.max())
        return [float(weight) for weight in raised / raised.sum()]

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        return weighted(base, experts, [self.scale * weight for weight in facts])
