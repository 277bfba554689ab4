"""The way from one model to another along the sphere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.gram import cosine, gram, lines
from lifelong.merging.rule import Array, Rule, Site, Stack
from lifelong.merging.rules.linear import weighted_sum
from lifelong.settings import setting

# Cosine from which on two vectors count as colinear.
_COLINEAR = 0.9995


@dataclass(frozen=True)
class SLERP(Rule):
    """Go the share `t` of the way from the base to the expert along a great circle (Shoemake 1985).

    `(sin((1 - t) omega) theta_0 + sin(t omega) theta_1) / sin(omega)`, omega the angle between the two flattened
    tensors. Nearly colinear ones (a cosine beyond 0.9995 in magnitude) are interpolated linearly. A tensor that is all
    zeros is at right angles to any other. As in mergekit, one of the two models is the base.
    """

    family: ClassVar[str] = "spherical"
    needs_base: ClassVar[bool] = True
    most: ClassVar[int | None] = 1

    t: float = setting(0.5, "share of the way from the base (0) to the expert (1)")

    def survey(self, stack: Stack) -> tuple[float, float]:
        """Return the coefficients of the base and of the expert."""
        products = gram(stack, lambda base, experts: [base, *experts], lines(stack.shape, "tensor"))
        found = float(cosine(products, 0, 1)[0])
        if abs(found) > _COLINEAR:
            return 1 - self.t, self.t
        angle = math.acos(found)
        return math.sin((1 - self.t) * angle) / math.sin(angle), math.sin(self.t * angle) / math.sin(angle)

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        return weighted_sum([base, *experts], list(facts))
