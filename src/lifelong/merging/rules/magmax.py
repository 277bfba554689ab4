"""The change of largest magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.rule import Array, Folding, Site, choose, namespace
from lifelong.settings import setting


@dataclass(frozen=True)
class MagMax(Folding):
    """Keep, number by number, the change of largest magnitude: `theta_0 + lambda tau_m`, `m = argmax_t |tau_t|`.

    Marczak et al. 2024 (2407.06322) fine-tune the experts one after another and use lambda = 0.5; for experts trained
    apart see `MaxAbs`. Where magnitudes are equal the later expert has it.
    """

    family: ClassVar[str] = "task vectors"
    paper: ClassVar[str] = "2407.06322"
    needs_base: ClassVar[bool] = True
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}
    symmetric: ClassVar[bool] = False

    scale: float = setting(0.5, "lambda, the scale of the merged task vector")

    def fold(
        self, state: list[Array], base: Array | None, expert: Array, index: int, site: Site, known: Any = None
    ) -> list[Array]:
        expert -= base
        xp = namespace(expert)
        return [choose(xp.abs(expert) >= xp.abs(state[0]), expert, state[0]) if state else expert]

    def finish(self, state: list[Array], base: Array | None, experts: int) -> Array:
        merged = state[0] * self.scale
        merged += base
        return merged


@dataclass(frozen=True)
class MaxAbs(MagMax):
    """MagMax of experts that were trained apart, each from the base: the control of Marczak et al. 2024 (2407.06322).

    What differs is how the experts came to be, and that lambda is 1.
    """

    scale: float = setting(1.0, "lambda, the scale of the merged task vector")
