"""Weight matching: permuted copies are found again, and the function stays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import lifelong
from lifelong import tree
from lifelong.errors import InputError
from lifelong.merging.alignment import align, permuted, sequential, weight_matching


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 3)
    )


def convolutional(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    block = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
    model = nn.Sequential(
        block, nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5), nn.Linear(5, 2)
    )
    norm = block[1]
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)
    return model.eval()


def shuffled(model: nn.Sequential, seed: int = 1) -> nn.Sequential:
    """The same function, its hidden units in another order."""
    specification = sequential(model)
    state = dict(model.state_dict())
    random = np.random.default_rng(seed)
    names = {axis for axes in specification.values() for axis in axes if axis is not None}
    orders = {name: random.permutation(len(state[f"{name}.weight"])) for name in sorted(names)}
    copy = mlp(9) if len(model) == 7 else convolutional(9)
    copy.load_state_dict(permuted(specification, state, orders))
    return copy.eval()


@pytest.mark.parametrize(("model", "shape"), [(mlp(), (5, 12)), (convolutional(), (5, 1, 4, 4))], ids=["mlp", "conv"])
def test_a_permuted_copy_is_found_again(model: nn.Sequential, shape: tuple[int, ...]) -> None:
    copy = shuffled(model)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(copy(inputs), model(inputs))
    name = "1.weight" if len(model) == 7 else "0.0.weight"
    assert not torch.equal(copy.state_dict()[name], model.state_dict()[name])
    aligned = align(sequential(model), dict(model.state_dict()), dict(copy.state_dict()))
    assert list(aligned) == list(copy.state_dict())
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(aligned[key], tensor, rtol=0, atol=0)


def test_alignment_before_a_merge_keeps_what_the_networks_have_in_common() -> None:
    model = mlp()
    copy = shuffled(model)
    inputs = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in copy.parameters():
            tensor += 0.01 * torch.randn(tensor.shape, generator=generator)
    state = dict(model.state_dict())
    plain = lifelong.merge("linear", None, [state, dict(copy.state_dict())])
    better = lifelong.merge("linear", None, [state, align(sequential(model), state, dict(copy.state_dict()))])
    errors = []
    for tensors in (plain, better):
        merged = mlp(3)
        merged.load_state_dict(tensors)
        errors.append(float((merged(inputs) - model(inputs)).square().mean().detach()))
    assert errors[1] < 0.01 * errors[0]


def test_the_function_of_an_unrelated_network_stays_and_it_comes_closer() -> None:
    model, other = mlp(0), mlp(1)
    state, own = dict(model.state_dict()), tree.snapshot(dict(other.state_dict()))
    aligned = align(sequential(model), state, own)
    inputs = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    before = other(inputs).detach()
    other.load_state_dict(aligned)
    torch.testing.assert_close(other(inputs), before)

    def product(tensors: dict[str, torch.Tensor]) -> float:
        return sum(float((state[name] * tensors[name]).sum()) for name in state)

    assert product(aligned) > product(own)


def test_one_hidden_layer_gets_the_best_of_all_permutations() -> None:
    random = np.random.default_rng(0)
    shapes = {"a": (5, 4), "b": (3, 5)}
    left, right = ({k: random.normal(size=s) for k, s in shapes.items()} for _ in range(2))
    specification = {"a": ("h", None), "b": (None, "h")}

    def value(order: tuple[int, ...]) -> float:
        index = list(order)
        return float((left["a"] * right["a"][index]).sum() + (left["b"] * right["b"][:, index]).sum())

    best = max(itertools.permutations(range(5)), key=value)
    assert tuple(weight_matching(specification, left, right)["h"]) == best


def test_a_permutation_on_both_axes_of_a_tensor() -> None:
    # As in a recurrent network: the hidden units are inputs and outputs of one matrix.
    random = np.random.default_rng(0)
    left = {"in": random.normal(size=(7, 4)), "loop": 0.1 * random.normal(size=(7, 7)), "steps": np.zeros(())}
    specification = {"in": ("h", None), "loop": ("h", "h")}
    order = random.permutation(7)
    right = permuted(specification, left, {"h": order})
    np.testing.assert_array_equal(right["loop"], left["loop"][order][:, order])
    for name, tensor in align(specification, left, right).items():
        np.testing.assert_array_equal(tensor, left[name])


def test_what_cannot_be_aligned_is_refused() -> None:
    with pytest.raises(InputError, match="1 is a PixelShuffle, which may depend on the order of units"):
        sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.PixelShuffle(2), nn.Conv2d(1, 1, 3)))
    with pytest.raises(InputError, match="1 is a grouped convolution"):
        sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4)))
    with pytest.raises(InputError, match="names a tensor 'a'"):
        align({"a": ("h",)}, {}, {})
    with pytest.raises(InputError, match=r"'a' is \[2\] and \[3\]"):
        align({"a": ("h",)}, {"a": np.ones(2)}, {"a": np.ones(3)})
    two = {"a": np.ones(2), "b": np.ones(3)}
    with pytest.raises(InputError, match=r"axes of \[2, 3\] numbers"):
        align({"a": ("h",), "b": ("h",)}, two, two)
