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
