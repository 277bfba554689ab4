"""Task arithmetic: the base plus a weighted sum of task vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.errors import InputError
from lifelong.merging.rule import Array, Folding, Site
from lifelong.merging.rules.linear import added
from lifelong.settings import setting

INT8_MASK = "the format of masks, which saves memory there; here they are no larger than a block"


@dataclass(frozen=True)
class TaskArithmetic(Folding):
    """Add task vectors `tau_t = theta_t - theta_0` to the base: `theta_0 + lambda sum_t w_t tau_t`.

    Ilharco et al. 2023, 2212.04089.
    """

    family: ClassVar[str] = "task vectors"
    paper: ClassVar[str] = "2212.04089"
    needs_base: ClassVar[bool] = True
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}
    ignored: ClassVar[Mapping[str, str]] = {
        "int8_mask": INT8_MASK,
        "density": "task arithmetic drops nothing, in mergekit either",
        "rescale": "task arithmetic drops nothing, in mergekit either",
    }
    per_expert: ClassVar[tuple[str, ...]] = ("weight",)

    weight: float | tuple[float, ...] = setting(1.0, "of each expert, or one for all")
    normalize: bool = setting(False, "divide by the sum of the weights")
    scale: float = setting(1.0, "lambda, the scale of the sum of the task vectors")

    def check(self, experts: int) -> None:
        super().check(experts)
        weights = self.each("weight", experts)
        if self.normalize and any(weights) and abs(sum(weights)) < 1e-8:
            raise InputError("rule task_arithmetic: the weights sum to zero, and normalize would divide by it")

    def fold(
        self, state: list[Array], base: Array | None, expert: Array, index: int, site: Site, known: Any = None
    ) -> list[Array]:
        expert -= base
        return [added(state, expert, self.of_expert("weight", index))]

    def finish(self, state: list[Array], base: Array | None, experts: int) -> Array:
        # No weight at all, as a filter may have it for some tensors, leaves the base.
        scale = self.scale / ((sum(self.each("weight", experts)) or 1.0) if self.normalize else 1.0)
        merged = state[0] * scale
        merged += base
        return merged


def task_vectors(base: Array | None, experts: list[Array]) -> list[Array]:
    """Return `theta_t - theta_0` of each expert, in its memory."""
    for each in experts:
        each -= base
    return experts
