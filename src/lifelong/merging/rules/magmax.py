"""The change of largest magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.rule import Array, Rule, Site, choose, namespace
from lifelong.merging.rules.task_arithmetic import task_vectors
from lifelong.settings import setting


@dataclass(frozen=True)
class MagMax(Rule):
    """Keep, number by number, the change of largest magnitude: `theta_0 + lambda tau_m`, `m = argmax_t |tau_t|`.

    Marczak et al. 2024 (2407.06322) fine-tune the experts one after another and use lambda = 0.5; on experts trained
    apart it is their control MaxAbs. Where magnitudes are equal the later expert has it.
    """

    family: ClassVar[str] = "task vectors"
    paper: ClassVar[str] = "2407.06322"
    needs_base: ClassVar[bool] = True
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}
    symmetric: ClassVar[bool] = False
    incremental: ClassVar[bool] = True

    scale: float = setting(0.5, "lambda, the scale of the merged task vector")

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        first, *others = task_vectors(base, experts)
        xp = namespace(first)
        for each in others:
            first = choose(xp.abs(each) >= xp.abs(first), each, first)
        first *= self.scale
        first += base
        return first
