"""The greedy soup: which experts an average gains from."""

from __future__ import annotations

from collections.abc import Callable

from lifelong.errors import InputError
from lifelong.merging.rules.linear import Linear


def greedy_soup(experts: int, evaluate: Callable[[Linear], float]) -> Linear:
    """Return the average of the experts that the greedy soup keeps (Wortsman et al. 2022, 2203.05482, recipe 1).

    Begin with the best expert; try the others, best first, and keep each with which the average is at least as good.

    Args:
        experts: how many there are, at least 1.
        evaluate: the held-out score of what a rule makes of the experts, more is better: merge by it and measure. It is
            called once for each expert alone, and once for each that is tried.

    Returns:
        The rule, its weights 1 and 0.
    """
    if experts < 1:
        raise InputError("a soup needs at least one expert")
    scores = [evaluate(_average([expert], experts)) for expert in range(experts)]
    first, *others = sorted(range(experts), key=lambda expert: -scores[expert])
    kept, best = [first], scores[first]
    for expert in others:
        score = evaluate(_average([*kept, expert], experts))
        if score >= best:
            kept, best = [*kept, expert], score
    return _average(kept, experts)


def _average(kept: list[int], experts: int) -> Linear:
    return Linear(weight=tuple(float(expert in kept) for expert in range(experts)))
