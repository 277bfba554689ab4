"""Drop and rescale: task vectors of which a random share is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lifelong.merging.draws import LEVELS, draws
from lifelong.merging.rule import Array, Site, Stack, like
from lifelong.merging.rules.sparsified import Sparsified
from lifelong.settings import setting


@dataclass(frozen=True)
class DARE(Sparsified):
    """Add task vectors of which each number is kept with the probability `density`, and then divided by it.

    Yu et al. 2023, 2311.03099. Which numbers are kept follows from `seed`, the tensor's name and the expert's place in
    the list alone. Each one kept is divided by `density`, as in the paper; mergekit restores the L1 norm of the tensor
    instead (`rescale_norm` l1), which takes a second pass and comes to the same in large tensors.
    """

    paper: ClassVar[str] = "2311.03099"
    symmetric: ClassVar[bool] = False
    random: ClassVar[bool] = True

    rescale: bool = setting(True, "make up for what was dropped")
    rescale_norm: Literal["expectation", "l1", "l2", "linf"] = setting(
        "expectation", "what rescaling restores: the expectation of each number, or a norm of the tensor"
    )
    seed: int = setting(0, "of the draws", ge=0, lt=2**63)

    def limits(self, stack: Stack) -> list[tuple[int, int]]:
        """Return the place of each expert, and the probability in 65536ths that a number of it is kept."""
        return [(place, round(self.of_expert("density", place) * LEVELS)) for place in stack.places]

    def sparsify(self, vector: Array, limit: Any, site: Site) -> None:
        place, level = limit
        if level < LEVELS:
            vector *= like(draws(self.seed, site, place, len(vector)) < level, vector)
            if self.keeps_expectation and level:
                vector *= LEVELS / level


@dataclass(frozen=True)
class DARETIES(DARE):
    """DARE, added where numbers agree with the elected sign, as TIES does."""

    elects: ClassVar[bool] = True
