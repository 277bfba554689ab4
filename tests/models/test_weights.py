"""Weights to start from: what fits, what is left out, and what is refused by name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from lifelong import models, tree
from lifelong.errors import InputError
from lifelong.models.weights import load_trunk

Weights = dict[str, Tensor]


def classifier() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def filled(module: nn.Module, value: int) -> Weights:
    return {name: torch.full_like(each, value) for name, each in module.state_dict().items()}


def trunk() -> nn.Module:
    return models.without_head(classifier())


def file(form: str) -> Weights:
    """A file of sevens in the form of a run's, of the bare trunk's, or of the whole classifier's."""
    whole = filled(classifier(), 7)
    bare = {name: each for name, each in whole.items() if not name.startswith("3.")}
    of_a_run = {f"trunk.{name}": each for name, each in bare.items()}
    return {"run": {**of_a_run, "head.linear.weight": torch.ones(5, 4)}, "trunk": bare, "classifier": whole}[form]


@pytest.mark.parametrize("form", ["run", "trunk", "classifier"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_fill_the_trunk_with_its_statistics(form: str, dtype: torch.dtype) -> None:
    made = trunk()
    stored = {name: each.to(dtype) if each.is_floating_point() else each for name, each in file(form).items()}
    load_trunk(made, save(stored), "file")
    assert all(bool((each == 7).all()) for each in tree.weights(made).values())
    assert made[0].weight.dtype == torch.float32


def test_tied_weights_may_be_named_once_and_fleeting_buffers_not_at_all() -> None:
    made = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    made[1].weight = made[0].weight
    made.register_buffer("grid", torch.zeros(2), persistent=False)
    once = {name: each.detach().clone() + 1 for name, each in made.named_parameters()}
    load_trunk(made, save(once), "file")
    assert torch.equal(made[1].weight, once["0.weight"])
    load_trunk(made, save({**once, "grid": torch.ones(2)}), "file")
    assert made.get_buffer("grid").tolist() == [1, 1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"0.bias": None}, "they lack 0.bias$"),
        (dict.fromkeys(filled(trunk(), 0)), "they lack 0.weight, 0.bias, 1.weight, 1.bias and 3 more$"),
        ({"4.weight": torch.ones(1)}, "they have in excess 4.weight$"),
        ({"3.weight": torch.ones(1), "4.weight": torch.ones(1)}, "in excess 3.weight, 4.weight$"),
        ({"0.bias": torch.ones(5)}, r"in another shape 0.bias \(real \[5\], not real \[4\]\)$"),
        ({"0.bias": torch.ones(4, dtype=torch.int8)}, r"0.bias \(integer \[4\], not real \[4\]\)$"),
        ({"0.bias": None, "x": torch.ones(1)}, "^weights file do not fit the network: they lack 0.bias; they have in"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_changed(change: dict[str, Tensor | None], says: str) -> None:
    made = trunk()
    before = tree.snapshot(tree.weights(made))
    stored = {name: each for name, each in {**file("trunk"), **change}.items() if each is not None}
    with pytest.raises(InputError, match=says):
        load_trunk(made, save(stored), "file")
    assert all(torch.equal(each, before[name]) for name, each in tree.weights(made).items())


def test_a_file_of_another_kind() -> None:
    with pytest.raises(InputError, match="weights file are no safetensors file"):
        load_trunk(trunk(), b"PK\x03\x04 a pickle of torch", "file")
