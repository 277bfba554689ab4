"""A random expert for each number: what rules that choose by magnitude are to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.draws import LEVELS, draws
from lifelong.merging.rule import Array, Folding, Site, choose, like
from lifelong.settings import setting


@dataclass(frozen=True)
class RandMix(Folding):
    """Keep, number by number, the change of an expert drawn at random: `theta_0 + lambda tau_r`.

    A control of Marczak et al. 2024 (2407.06322). All experts are as likely, to within 1/65536; drawn as from a stream
    (reservoir sampling), so that they may come one at a time.
    """

    family: ClassVar[str] = "task vectors"
    paper: ClassVar[str] = "2407.06322"
    needs_base: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}

    scale: float = setting(1.0, "lambda, the scale of the merged task vector")
    seed: int = setting(0, "of the draws", ge=0, lt=2**63)

    def fold(
        self, state: list[Array], base: Array | None, expert: Array, index: int, site: Site, known: Any = None
    ) -> list[Array]:
        """Return the changes drawn so far: those of expert number t come in their place with probability 1/t."""
        expert -= base
        if not state:
            return [expert]
        drawn = draws(self.seed, site, index, len(expert)) < round(LEVELS / (index + 1))
        return [choose(like(drawn, expert), expert, state[0])]

    def finish(self, state: list[Array], base: Array | None, experts: int) -> Array:
        merged = state[0] * self.scale
        merged += base
        return merged
