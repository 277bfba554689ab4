"""MAML without second derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lifelong.meta.inner_loop import Graph, InnerLoop


@dataclass(frozen=True)
class FOMAML(InnerLoop):
    """MAML whose meta-gradient is `grad L_Q(theta')`, taken at the adapted weights and applied to the initial ones.

    It needs no graph through the inner steps: less memory and, for one step, about half the time (docs/meta.md).
    """

    family: ClassVar[str] = "gradient"
    paper: ClassVar[str] = "Finn et al. 2017, 1703.03400"

    def order(self, iteration: int) -> Graph:
        return "first"
