"""Merges to which experts are added one at a time, against merging them all at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong import tree
from lifelong.errors import InputError
from lifelong.merging.in_memory import merge
from lifelong.merging.incremental import Folded, Paired, Pooled, incremental
from lifelong.merging.orthogonal import Projected, projected
from lifelong.merging.rule import Folding
from lifelong.merging.rules import RULES
from lifelong.tree import Params

SHAPES = {"layers.0.weight": (40, 30), "layers.0.bias": (40,), "layers.1.weight": (5, 40), "scale": ()}
ONE_BY_ONE = [name for name, rule in RULES.items() if rule.most is not None]
AT_ONCE = [name for name in RULES if name not in (*ONE_BY_ONE, "fisher", "regmean")]


def weights(seed: int, base: Params | None = None) -> Params:
    drawn = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(shape, generator=drawn) for name, shape in SHAPES.items()}
    return noise if base is None else {name: base[name] + 0.1 * each for name, each in noise.items()}


BASE = weights(0)
EXPERTS = [weights(seed, BASE) for seed in (1, 2, 3)]


def added(kept: Folded | Paired | Pooled | Projected, *statistics: Params) -> Params:
    for index, expert in enumerate(EXPERTS):
        kept.add(BASE, expert, statistics[index] if statistics else {})
    return kept.merged(BASE)


@pytest.mark.parametrize("name", AT_ONCE)
def test_one_at_a_time_gives_the_bits_of_all_at_once(name: str) -> None:
    rule = RULES[name]()
    kept = incremental(rule)
    torch.testing.assert_close(added(kept), merge(rule, BASE, EXPERTS), rtol=0, atol=0)
    assert isinstance(kept, Folded) == isinstance(rule, Folding)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("magmax", {}),
        ("ties", {"density": 0.3, "trim": "model"}),
        ("ties", {"density": 0.3, "weight": 0.3, "rescale": True}),
        ("dare_linear", {"density": 0.3, "weight": 0.3, "normalize": True}),
        ("dare_ties", {"density": 0.5, "normalize": True}),
        ("della", {"density": 0.5, "normalize": False}),
        ("della_linear", {"density": 0.5, "rescale_norm": "expectation"}),
        ("breadcrumbs", {"density": 0.5, "gamma": 0.1}),
        ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.1}),
        ("sign_consensus", {"agreement": 0.6, "weight": 0.3}),
        ("randmix", {"seed": 3}),
    ],
)
def test_what_folds_keeps_as_much_for_many_experts_and_gives_the_bits_of_all_at_once(
    name: str, case: dict[str, Any]
) -> None:
    drawn = torch.Generator().manual_seed(0)
    # More than a block, and little: limits are found tensor by tensor, or over both.
    shapes = {"w": (700, 900), "b": (900,)}
    base, *experts = (
        {name: torch.randn(shape, generator=drawn) * (0.1 if name == "b" else 1) for name, shape in shapes.items()}
        for _ in range(6)
    )
    rule = RULES[name](**case)
    kept = incremental(rule)
    sizes = []
    for expert in experts:
        kept.add(base, expert, {})
        assert isinstance(kept, Folded)
        sizes.append(sum(tree.size(part) for part in kept.parts))
    assert len(set(sizes)) == 1
    torch.testing.assert_close(kept.merged(base), merge(rule, base, experts), rtol=0, atol=0)


def test_fisher_keeps_two_trees_and_gives_the_weighted_average() -> None:
    drawn = torch.Generator().manual_seed(9)
    importances = [{name: torch.rand(shape, generator=drawn) for name, shape in SHAPES.items()} for _ in EXPERTS]
    for each in importances:
        each["layers.0.bias"][:10] = 0  # which matters to no expert
    importances[0]["layers.1.weight"][0] = 0  # which matters to some
    kept = incremental(RULES["fisher"]())
    whole = merge("fisher", None, EXPERTS, statistics=importances)
    torch.testing.assert_close(added(kept, *importances), whole, rtol=0, atol=0)
    assert isinstance(kept, Folded)
    assert [set(part) for part in kept.parts] == [set(SHAPES), set(SHAPES)]


@pytest.mark.parametrize("samples", [5, 100])
def test_regmean_keeps_sums_and_gives_the_least_squares(samples: int) -> None:
    drawn = torch.Generator().manual_seed(9)
    grams = []
    for _ in EXPERTS:
        inputs = torch.randn(samples, 30, generator=drawn)
        inputs[:, 3] = 0  # an input that never is
        grams.append({"layers.0.weight": inputs.T @ inputs / samples})
    kept = incremental(RULES["regmean"]())
    whole = merge("regmean", None, EXPERTS, statistics=grams)
    torch.testing.assert_close(added(kept, *grams), whole, rtol=0, atol=0)
    assert isinstance(kept, Folded)
    assert [set(part) for part in kept.parts] == [set(SHAPES)] * 2 + [{"layers.0.weight"}] * 2


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_a_rule_of_two_models_merges_with_the_result_so_far(name: str) -> None:
    rule = RULES[name]()
    if rule.least == 2:
        last = merge(rule, BASE, [merge(rule, BASE, EXPERTS[:2]), EXPERTS[2]])
    else:
        last = BASE
        for expert in EXPERTS:
            last = merge(rule, last, [expert])
    torch.testing.assert_close(added(incremental(rule)), last, rtol=0, atol=0)


def test_what_is_kept_does_not_move_with_the_answer() -> None:
    for name in ("magmax", "linear", "ties", "slerp"):
        kept = incremental(RULES[name]())
        first = added(kept)
        for each in first.values():
            each.zero_()
        assert any(each.any() for each in kept.merged(BASE).values())


def test_settings_of_single_experts_are_refused() -> None:
    with pytest.raises(InputError, match="rule ties: weight has a number for each expert, and experts come one"):
        incremental(RULES["ties"](weight=(1.0, 0.5)))


def opcm_reference(alpha: float) -> dict[str, Tensor]:
    """The paper's recursion as it is written, in float64: lambda_t and the merged task vector at each step."""
    base = {name: each.double() for name, each in BASE.items()}
    changes = [{name: expert[name].double() - start for name, start in base.items()} for expert in EXPERTS]
    norms = [math.sqrt(sum(float(each.square().sum()) for each in change.values())) for change in changes]
    merged, scale = changes[0], 1.0
    for index, change in enumerate(changes[1:], start=2):
        total = {}
        for name, new in change.items():
            if new.ndim == 2:
                left, values, right = torch.linalg.svd(merged[name], full_matrices=True)
                closed = int((values.cumsum(0) / values.sum() > alpha).int().argmax())
                inner = left.T @ new @ right.T
                inner.diagonal().zero_()
                inner[:closed, :closed] = 0
                new = left @ inner @ right
            total[name] = scale * merged[name] + new
        scale = math.sqrt(sum(float(each.square().sum()) for each in total.values())) / (sum(norms[:index]) / index)
        merged = {name: each / scale for name, each in total.items()}
    return {name: base[name] + each for name, each in merged.items()}


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_orthogonal_projection_is_the_papers_recursion(alpha: float) -> None:
    found = {name: each.double() for name, each in added(Projected(alpha)).items()}
    torch.testing.assert_close(found, opcm_reference(alpha), rtol=1e-5, atol=1e-6)


def test_projection_adds_nothing_that_is_known_and_all_that_is_orthogonal() -> None:
    total = torch.outer(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(projected(3 * total, total, 0.5), torch.zeros(3, 2))
    other = torch.outer(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(projected(other, total, 0.5), other)
    torch.testing.assert_close(projected(other, torch.zeros(3, 2), 0.5), other)
