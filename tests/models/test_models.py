"""Trunks, heads, and how they meet."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lifelong import models
from lifelong.errors import InputError
from lifelong.models import HeadKind, Network, with_head, without_head
from lifelong.models.heads import GrowingHead, MultiHead


def network(kind: HeadKind, classes: tuple[int, ...] = (2, 3), mask_unseen: bool = False, seed: int = 0) -> Network:
    trunk = nn.Sequential(nn.Flatten(), nn.Identity())
    sample = torch.zeros(2, 4)
    return with_head(
        trunk, kind, sample=sample, classes=classes, outputs=sum(classes), mask_unseen=mask_unseen, seed=seed
    )


def features(rows: int = 6) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))


def test_a_single_head_answers_for_seen_classes_when_masked() -> None:
    masked, whole = network("single", mask_unseen=True), network("single")
    inputs = features()
    assert masked(inputs, 0).shape == (6, 0)
    for made in (masked, whole):
        made.head.grow(2)
    assert torch.equal(masked(inputs, 0), whole(inputs, 0)[:, :2])
    assert whole(inputs, 0).shape == (6, 5)
    masked.head.grow(3)
    assert torch.equal(masked(inputs, 0), whole(inputs, 1))


def test_a_multi_head_answers_each_sample_with_the_layer_of_its_task() -> None:
    made = network("multi")
    made.head.grow(2)
    made.head.grow(3)
    inputs, tasks = features(), torch.tensor([0, 1, 1, 0, 1, 0])
    mixed, first, second = made(inputs, tasks), made(inputs, 0), made(inputs, 1)
    assert mixed.shape == (6, 3)
    torch.testing.assert_close(mixed[tasks == 1], second[tasks == 1])
    torch.testing.assert_close(mixed[tasks == 0, :2], first[tasks == 0])
    assert bool((mixed[tasks == 0, 2] == -torch.inf).all())
    mixed[tasks == 0, :2].sum().backward()
    assert isinstance(made.head, MultiHead)
    assert made.head.blocks[0].weight.grad is not None
    untouched = made.head.blocks[1].weight.grad
    assert untouched is None or not bool(untouched.any())


def test_a_multi_head_answers_for_a_task_to_come_with_the_layer_it_will_start_from() -> None:
    made = network("multi")
    made.head.grow(2)
    inputs = features()
    before = made(inputs, 1)
    made.head.grow(3)
    assert torch.equal(made(inputs, 1), before)


def test_a_growing_head_keeps_its_old_answers() -> None:
    made = network("growing")
    inputs = features()
    assert made(inputs, 0).shape == (6, 0)
    made.head.grow(2)
    old = made(inputs, 0)
    made.head.grow(3)
    assert isinstance(made.head, GrowingHead)
    assert made(inputs, 0).shape == (6, 5)
    assert torch.equal(made(inputs, 1)[:, :2], old)


@pytest.mark.parametrize("kind", ["multi", "growing"])
def test_the_weights_of_a_head_do_not_depend_on_when_it_grows(kind: HeadKind) -> None:
    early, late = network(kind), network(kind)
    early.head.grow(2)
    early.head.grow(3)
    late.head.grow(2)
    torch.manual_seed(99)
    torch.rand(1000)
    random = torch.get_rng_state()
    late.head.grow(3)
    assert torch.equal(torch.get_rng_state(), random)
    for name, weight in early.head.state_dict().items():
        assert torch.equal(late.head.state_dict()[name], weight)
    other = network(kind, seed=1)
    other.head.grow(2)
    first = "blocks.0.weight"
    assert not torch.equal(other.head.state_dict()[first], early.head.state_dict()[first])
    assert not torch.equal(early.head.state_dict()[first], early.head.state_dict()["blocks.1.weight"][:2])


class Classifier(nn.Module):
    """A user's own: the head stands before an auxiliary layer in the order of definition."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 7), nn.ReLU())
        self.answer = nn.Linear(7, 3)
        self.auxiliary = nn.Linear(3, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.answer(self.body(inputs))
        return answer


def test_without_head_takes_the_last_or_the_named_layer_off() -> None:
    assert without_head(Classifier(), "answer")(features()).shape == (6, 7)
    last = without_head(Classifier())
    assert isinstance(last.auxiliary, nn.Identity)
    assert isinstance(last.answer, nn.Linear)
    nested = without_head(nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 2))))
    assert nested(features()).shape == (6, 5)
    assert isinstance(without_head(nn.Linear(4, 2)), nn.Identity)


def test_without_head_names_what_is_missing() -> None:
    with pytest.raises(InputError, match="did you mean 'answer'"):
        without_head(Classifier(), "anwser")
    with pytest.raises(InputError, match="ReLU has no linear layer"):
        without_head(nn.ReLU())


def test_a_function_of_the_users_own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.Linear(5, 3))\n"
        "def number(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    first, again, other = (models.trunk("own_networks:net", {}, (8,), seed) for seed in (0, 0, 1))
    assert first(torch.zeros(2, 8)).shape == (2, 5)
    assert torch.equal(first[1].weight, again[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)
    assert models.trunk("own_networks:net", {"head_name": "1"}, (8,), 0)(torch.zeros(2, 5)).shape == (2, 3)
    with pytest.raises(InputError, match="returned a int"):
        models.trunk("own_networks:number", {}, (8,), 0)
    for name in ("own_networks:none", "no_such_module:net"):
        with pytest.raises(InputError, match="cannot be imported"):
            models.trunk(name, {}, (8,), 0)


def test_a_deviation_draws_the_first_weights_of_hidden_layers_and_sets_their_biases() -> None:
    made, again, other = (models.trunk("mlp", {"hidden": [300], "deviation": 0.2}, (400,), seed) for seed in (0, 0, 1))
    layer = made[1]
    assert torch.equal(layer.weight, again[1].weight)
    assert not torch.equal(layer.weight, other[1].weight)
    assert float(layer.weight.detach().abs().max()) <= 0.4
    # The deviation of a standard normal distribution that is cut at 2.
    torch.testing.assert_close(layer.weight.detach().std(), torch.tensor(0.2 * 0.87962), rtol=0.01, atol=0)
    assert bool((layer.bias == 0.2).all())


def test_networks_by_name() -> None:
    wide = models.trunk("mlp", {"hidden": [6, 5], "dropout": 0.5, "bias": False}, (2, 3), 0)
    assert wide(torch.zeros(4, 2, 3)).shape == (4, 5)
    assert sum(parameter.numel() for parameter in wide.parameters()) == 6 * 6 + 6 * 5
    conv = models.trunk("convnet", {"channels": [4, 8], "norm": "group"}, (1, 5, 3), 0)
    assert conv(torch.zeros(2, 1, 5, 3)).shape == (2, 8)
    random = torch.get_rng_state()
    models.trunk("mlp", {}, (4,), 0)
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(InputError, match="did you mean 'convnet'"):
        models.trunk("convnt", {}, (1, 8, 8), 0)
    with pytest.raises(InputError, match="convnet needs images"):
        models.trunk("convnet", {}, (64,), 0)


def test_a_trunk_that_does_not_fit_the_samples() -> None:
    with pytest.raises(InputError, match=r"does not take samples of shape \(5,\)"):
        with_head(nn.Linear(4, 3), "single", sample=torch.zeros(2, 5), classes=(2,), outputs=2)
    with pytest.raises(InputError, match=r"must be \[batch, width\]"):
        with_head(nn.Identity(), "single", sample=torch.zeros(2, 5, 5), classes=(2,), outputs=2)


def test_learning_the_width_leaves_the_trunk_as_it_was() -> None:
    trunk = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with_head(trunk, "single", sample=torch.ones(2, 4), classes=(2,), outputs=2)
    assert trunk.training
    assert int(trunk[1].num_batches_tracked) == 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"norm": "group"}, {"norm": "none", "halve": "stride"}])
def test_channels_last_changes_the_layout_alone(channels: int, settings: dict[str, Any]) -> None:
    laid = models.trunk("convnet", {"channels": (8, 16), **settings}, (channels, 12, 12), 0).double()
    plain = copy.deepcopy(nn.Sequential(*list(laid)[1:]))
    images = torch.rand(5, channels, 12, 12, dtype=torch.float64)
    made, expected = laid(images), plain(images)
    torch.testing.assert_close(made, expected)
    for each in (made, expected):
        each.square().sum().backward()
    for (name, mine), theirs in zip(laid.named_parameters(), plain.parameters(), strict=True):
        assert "layout" not in name
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_leaves_weights_and_gradients_in_order(channels: int) -> None:
    """A fused optimiser goes through them as they lie in memory, whatever their strides say."""
    laid = models.trunk("convnet", {}, (channels, 12, 12), 0)
    images = torch.rand(5, channels, 12, 12)
    assert laid[:2](images).is_contiguous(memory_format=torch.channels_last)
    assert not nn.Sequential(laid[1])(images).is_contiguous(memory_format=torch.channels_last)
    laid(images).square().sum().backward()
    for each in laid.parameters():
        assert each.grad is not None
        assert each.is_contiguous() and each.grad.is_contiguous()  # noqa: PT018
    tasks = images.unsqueeze(0)
    assert laid[0](tasks) is tasks
