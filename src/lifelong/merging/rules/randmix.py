"""A random expert for each number: what rules that choose by magnitude are to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lifelong.merging.draws import LEVELS, draws
from lifelong.merging.rule import Array, Rule, Site, choose, like
from lifelong.merging.rules.task_arithmetic import task_vectors
from lifelong.settings import setting


@dataclass(frozen=True)
class RandMix(Rule):
    """Keep, number by number, the change of an expert drawn at random: `theta_0 + lambda tau_r`.

    A control of Marczak et al. 2024 (2407.06322). All experts are as likely, to within 1/65536.
    """

    family: ClassVar[str] = "task vectors"
    paper: ClassVar[str] = "2407.06322"
    needs_base: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}

    scale: float = setting(1.0, "lambda, the scale of the merged task vector")
    seed: int = setting(0, "of the draws", ge=0)

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        count = len(experts)
        drawn = draws(self.seed, site, 0, len(experts[0])).astype(np.uint32) * count // LEVELS
        merged, *others = task_vectors(base, experts)
        for expert, each in enumerate(others, start=1):
            merged = choose(like(drawn == expert, each), each, merged)
        merged *= self.scale
        merged += base
        return merged
