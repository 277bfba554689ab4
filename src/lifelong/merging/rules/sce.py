"""Select, calculate and erase: the numbers that experts differ in most, weighed by how far each went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lifelong.merging.quantile import cuts
from lifelong.merging.rule import Array, Rule, Site, Stack, as_numpy, namespace
from lifelong.merging.rules.sign import agreeing, elected
from lifelong.merging.rules.task_arithmetic import INT8_MASK, task_vectors
from lifelong.settings import setting


@dataclass(frozen=True)
class SCE(Rule):
    """Average, number by number, the selected task vectors that agree in sign, weighed by their energy in the tensor.

    Wan et al. 2024, 2408.07990 (FuseChat). Select: keep the share `select_topk` of numbers, of those that differ at
    all, with the largest variance over experts. Calculate: `w_t = ||tau_t||^2 / sum_s ||tau_s||^2` of what is kept.
    Erase: `theta_0 + sum_{t in A} w_t tau_t / sum_{t in A} w_t` over the experts A that have the sign of
    `sum_t tau_t`. Numbers of equal variance are all kept.

    mergekit weighs experts alike where mean squares sum to less than 1e-6, as those of most fine-tuning do; here they
    weigh what the equation says.
    """

    family: ClassVar[str] = "task vectors"
    paper: ClassVar[str] = "2408.07990"
    needs_base: ClassVar[bool] = True
    ignored: ClassVar[Mapping[str, str]] = {"int8_mask": INT8_MASK}

    select_topk: float = setting(1.0, "share of the numbers that is kept, by variance, 0 to 1", ge=0, le=1)

    def survey(self, stack: Stack) -> tuple[float, list[float]]:
        """Return the least variance that is kept, and the weight of each expert."""
        least = 0.0
        if self.select_topk < 1:
            differ = sum(stack.map(lambda base, experts, site: _differing(task_vectors(base, experts))))
            keep = int(differ * self.select_topk)
            (least,) = cuts(stack, lambda base, experts: [_variance(task_vectors(base, experts))], [keep])

        def of_block(base: Array | None, experts: list[Array], site: Site) -> Any:
            vectors = _selected(task_vectors(base, experts), least)
            return np.array([np.square(as_numpy(each), dtype=np.float64).sum() for each in vectors])

        energy = sum(stack.map(of_block), np.zeros(len(stack.experts)))
        total = energy.sum()
        return least, list((energy / total if total > 0 else np.full(len(energy), 1 / len(energy))).tolist())

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        least, weights = facts
        vectors = _selected(task_vectors(base, experts), least)
        signs = elected(vectors)
        for each, weight in zip(vectors, weights, strict=True):
            each *= weight
        merged = agreeing(vectors, weights, signs, normalize=True)
        merged += base
        return merged


def _variance(vectors: list[Array]) -> Array:
    """Return the variance over `vectors` of each number."""
    xp = namespace(vectors[0])
    mean, variance = xp.zeros_like(vectors[0]), xp.zeros_like(vectors[0])
    for each in vectors:
        mean += each
    mean *= 1 / len(vectors)
    for each in vectors:
        off = each - mean
        off *= off
        variance += off
    variance *= 1 / len(vectors)
    return variance


def _differing(vectors: list[Array]) -> int:
    return int(np.count_nonzero(as_numpy(_variance(vectors))))


def _selected(vectors: list[Array], least: float) -> list[Array]:
    """Return the vectors with 0 for the numbers whose variance is below `least`, in their memory."""
    if least > 0:
        kept = _variance(vectors) >= least
        for each in vectors:
            each *= kept
    return vectors
