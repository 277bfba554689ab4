"""Arithmetic on trees of parameters."""

from __future__ import annotations

import pytest
import torch

from lifelong import tree


@pytest.mark.parametrize("piece", [1, 7, 64, 10_000])
def test_blocks_cover_every_number_once_and_write_through(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "_PIECE", piece)
    shapes = {"scalar": (), "empty": (0, 3), "vector": (13,), "matrix": (5, 9), "filters": (6, 3, 2, 2), "left": (4,)}
    drawn = {name: torch.randn(shape) for name, shape in shapes.items()}
    drawn["filters"] = drawn["filters"].to(memory_format=torch.channels_last)
    sums, names = tree.zeros_like(drawn), [name for name in shapes if name != "left"]
    for total, values in tree.blocks(names, sums, drawn):
        torch._foreach_add_(total, values)
    for name in names:
        assert torch.equal(sums[name], drawn[name])
    assert bool((sums["left"] == 0).all())


def test_what_is_under_a_prefix_loses_it_once() -> None:
    weights = {"trunk.0.bias": torch.ones(2), "trunk.trunk.bias": torch.ones(3), "head.bias": torch.ones(4)}
    assert {name: len(each) for name, each in tree.under("trunk.", weights).items()} == {"0.bias": 2, "trunk.bias": 3}


def test_gradients_that_lie_otherwise_in_memory_reach_a_fused_optimiser_in_order() -> None:
    weight, gradient = torch.rand(4, 3, 2, 2), torch.rand(4, 3, 2, 2)
    for found in (gradient, gradient.to(memory_format=torch.channels_last)):
        params = {"weight": weight.clone().requires_grad_()}
        tree.attach(params, {"weight": found})
        torch.optim.SGD(params.values(), 0.1, fused=True).step()
        torch.testing.assert_close(params["weight"].detach(), weight - 0.1 * gradient)
