"""Distillation into a merge: whose answers it takes over."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lifelong import tree
from lifelong.errors import InputError
from lifelong.merging.distillation import distill, divergence
from lifelong.tree import Params


def expert(seed: int) -> tuple[nn.Module, Params]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    return model, tree.snapshot(tree.weights(model))


def test_the_divergence_is_that_of_the_softened_distributions() -> None:
    logits = torch.tensor([[0.0, math.log(3.0) * 2]], dtype=torch.float64)
    wanted = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    # At T = 2 the student says 1/4 and 3/4.
    expected = 4 * (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))
    assert float(divergence(logits, wanted, 2.0)) == pytest.approx(expected)


def test_a_merge_comes_to_answer_as_its_experts_do_on_the_samples_they_are_asked_about() -> None:
    model, first = expert(0)
    _, second = expert(1)
    merged = {name: (each + second[name]) / 2 for name, each in first.items()}
    drawn = torch.Generator().manual_seed(2)
    here, there = (torch.randn(64, 4, generator=drawn, dtype=torch.float64) + shift for shift in (3.0, -3.0))
    found = distill(model, merged, [(here, [first]), (there, [second])], epochs=600, learning_rate=1e-2)

    def gap(weights: Params, inputs: torch.Tensor, teacher: Params) -> float:
        wanted = (functional_call(model, teacher, (inputs,)) / 2).softmax(1)
        return float(divergence(functional_call(model, weights, (inputs,)), wanted, 2.0))

    for inputs, teacher in ((here, first), (there, second)):
        assert gap(found, inputs, teacher) < 0.05 * gap(merged, inputs, teacher)
    torch.testing.assert_close(tree.weights(model), first, rtol=0, atol=0)


def test_several_experts_teach_the_mean_of_their_predictions() -> None:
    model, first = expert(0)
    _, second = expert(1)
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = distill(model, first, [(inputs, [first, second])], epochs=3000, learning_rate=1e-2, temperature=1.0)
    wanted = sum(functional_call(model, each, (inputs,)).softmax(1) for each in (first, second)) / 2
    torch.testing.assert_close(functional_call(model, found, (inputs,)).softmax(1), wanted, atol=5e-3, rtol=0)


def test_wrong_experts_and_batches_are_named() -> None:
    model, weights = expert(0)
    inputs = torch.zeros(2, 4, dtype=torch.float64)
    with pytest.raises(InputError, match="at least one expert"):
        distill(model, weights, [(inputs, [])])
    with pytest.raises(InputError, match="no tensor 'head', which an expert names"):
        distill(model, weights, [(inputs, [{"head": torch.zeros(1)}])])
    with pytest.raises(InputError, match="at least one batch"):
        distill(model, weights, [])
