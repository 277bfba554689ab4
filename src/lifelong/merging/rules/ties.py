"""Trim, elect sign and merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lifelong.merging.quantile import cuts
from lifelong.merging.rule import Array, Rule, Site, Stack, namespace
from lifelong.merging.rules.sparsified import Sparsified
from lifelong.merging.rules.task_arithmetic import task_vectors
from lifelong.settings import setting


@dataclass(frozen=True)
class TIES(Sparsified):
    """Average, number by number, the trimmed task vectors that agree with the elected sign.

    Yadav et al. 2023, 2306.01708. Trim: of each task vector keep the share `density` of largest magnitude, over the
    tensor or, as the authors do, over the whole model. Elect: the sign of `sum_t w_t tau_t`. Merge:
    `theta_0 + lambda sum_{t in A} w_t tau_t / sum_{t in A} w_t` over the experts A whose trimmed number has the elected
    sign. They keep 20 % (`density` 0.2); 1 trims nothing.

    Numbers equal to the least one kept are all kept: coarse formats have many, and no order among them is better.
    """

    paper: ClassVar[str] = "2306.01708"
    elects: ClassVar[bool] = True

    normalize: bool = setting(True, "divide by the weights of the experts that agree")
    trim: Literal["tensor", "model"] = setting("tensor", "what `density` is a share of: each tensor, or the model")

    def survey_model(self, parts: Sequence[tuple[Rule, Stack]]) -> list[float] | None:
        """Return the least magnitude of each expert that is kept, over the tensors that are trimmed together."""
        joined = [(rule, stack) for rule, stack in parts if isinstance(rule, TIES) and rule.trim == "model"]
        if not joined:
            return None
        stacks = [stack for _, stack in joined]
        size = sum(stack.size for stack in stacks)
        counts = [[rule.of_expert("density", place) * stack.size for place in stack.places] for rule, stack in joined]
        return cuts(
            stacks, magnitudes, [share_of(size, sum(each) / max(1, size)) for each in zip(*counts, strict=True)]
        )

    def limits(self, stack: Stack) -> list[float]:
        """Return the least magnitude that is kept of each expert."""
        if self.trim == "model":
            assert stack.model is not None
            return list(stack.model)
        keep = [share_of(stack.size, self.of_expert("density", place)) for place in stack.places]
        return cuts(stack, magnitudes, keep)

    def sparsify(self, vector: Array, limit: Any, site: Site) -> None:
        if limit > 0:
            vector *= namespace(vector).abs(vector) >= limit


def share_of(size: int, density: float) -> int:
    """Return how many of `size` numbers a density keeps: rounded down, but one at least unless it is 0.

    Of all numbers that is one more than there are, for which no cut has to be looked for.
    """
    if density >= 1:
        return size + 1
    return max(int(density * size), 1 if density > 0 else 0)


def magnitudes(base: Array | None, experts: list[Array]) -> list[Array]:
    """Return the magnitudes of one block of the task vectors."""
    return [namespace(each).abs(each) for each in task_vectors(base, experts)]
