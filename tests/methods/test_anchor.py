"""One quadratic against the explicit sum of the penalties of all tasks."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from lifelong.methods import Anchor
from lifelong.training import state

SHAPES = {"a": (3, 2), "b": (4,)}
Params = dict[str, Tensor]


def drawn(seed: int, share_of_zeros: float = 0.0) -> Params:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in SHAPES.items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        keep = torch.rand(shape, generator=generator) >= share_of_zeros
        found[name] = values * keep
    return found


def importances(seed: int, share_of_zeros: float) -> Params:
    return {name: each.square() for name, each in drawn(seed, share_of_zeros).items()}


def gradient_of_the_sum(tasks: list[tuple[Params, Params]], theta: Params, strength: float) -> Params:
    """The gradient, by autograd, of `strength/2 sum_t sum_i F_t,i (theta_i - theta*_t,i)^2`."""
    free = {name: each.clone().requires_grad_() for name, each in theta.items()}
    total = torch.zeros((), dtype=torch.float64)
    for importance, centre in tasks:
        for name, weight in importance.items():
            total = total + strength / 2 * (weight * (free[name] - centre[name]) ** 2).sum()
    found = torch.autograd.grad(total, list(free.values()), allow_unused=True)
    return {
        name: torch.zeros_like(free[name]) if each is None else each for name, each in zip(free, found, strict=True)
    }


def pulled(anchor: Anchor, theta: Params, strength: float) -> Params:
    """What `pull` adds to gradients of 10."""
    free = {name: each.clone().requires_grad_() for name, each in theta.items()}
    for each in free.values():
        each.grad = torch.full_like(each, 10.0)
    anchor.pull(free, strength)
    return {name: each.grad - 10.0 for name, each in free.items()}


def assert_close(found: Params, expected: Params) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
@hypothesis.given(
    st.integers(1, 6), st.sampled_from([0.0, 0.3, 0.9, 1.0]), st.floats(0.01, 100), st.integers(0, 10_000)
)
def test_the_sum_of_tasks_is_one_quadratic(count: int, zeros: float, strength: float, seed: int) -> None:
    tasks = [(importances(seed + 7 * t, zeros), drawn(seed + 7 * t + 1)) for t in range(count)]
    anchor = Anchor()
    for importance, centre in tasks:
        anchor.add(importance, centre)
    theta = drawn(seed + 5)
    expected = gradient_of_the_sum(tasks, theta, strength)
    assert_close(pulled(anchor, theta, strength), expected)

    free = {name: each.clone().requires_grad_() for name, each in theta.items()}
    penalty = anchor.penalty(free, strength)
    assert penalty.shape == ()
    found = dict(zip(free, torch.autograd.grad(penalty, list(free.values())), strict=True))
    assert_close(found, expected)


def test_nan_never_comes_of_weights_that_are_zero_for_ever() -> None:
    anchor, zero = Anchor(), {"a": torch.zeros(2)}
    for point in (1.0, 2.0):
        anchor.add(zero, {"a": torch.full((2,), point)})
    assert anchor.centre["a"].isfinite().all()
    assert pulled(anchor, {"a": torch.ones(2)}, 1.0)["a"].tolist() == [0.0, 0.0]


def test_hand_computed() -> None:
    anchor = Anchor()
    anchor.add({"a": torch.tensor([1.0, 3.0])}, {"a": torch.tensor([0.0, 4.0])})
    anchor.add({"a": torch.tensor([3.0, 0.0])}, {"a": torch.tensor([8.0, 9.0])})
    assert anchor.weight["a"].tolist() == [4.0, 3.0]
    assert anchor.centre["a"].tolist() == [6.0, 4.0]
    theta = {"a": torch.tensor([7.0, 6.0])}
    assert float(anchor.penalty(theta, 2.0)) == 4 * 1 + 3 * 4
    assert pulled(anchor, theta, 2.0)["a"].tolist() == [8.0, 12.0]


def test_new_names_come_in_later_and_others_stay() -> None:
    first, second = ({"a": importances(0, 0)["a"]}, drawn(1)), (importances(2, 0), drawn(3))
    third = ({"b": importances(4, 0)["b"]}, drawn(5))
    anchor = Anchor()
    for importance, centre in (first, second, third):
        anchor.add(importance, centre)
    theta = drawn(6)
    assert_close(pulled(anchor, theta, 0.7), gradient_of_the_sum([first, second, third], theta, 0.7))


def test_memory_does_not_grow_with_tasks() -> None:
    def size(anchor: Anchor) -> int:
        tensors: dict[str, Tensor] = {}
        state.capture(anchor, "anchor", tensors)
        return sum(each.numel() * each.element_size() for each in tensors.values())

    anchor, sizes = Anchor(), []
    for task in range(5):
        anchor.add(importances(task, 0), drawn(task))
        sizes.append(size(anchor))
    assert sizes == [2 * 10 * 8] * 5


def test_what_is_added_is_copied() -> None:
    importance, theta = importances(0, 0), drawn(1)
    anchor = Anchor()
    anchor.add(importance, theta)
    before = pulled(anchor, drawn(2), 1.0)
    for each in (*importance.values(), *theta.values()):
        each.fill_(99.0)
    assert_close(pulled(anchor, drawn(2), 1.0), before)
    anchor.recentre({"a": torch.ones(3, 2, dtype=torch.float64)}, theta)
    theta["a"].zero_()
    assert anchor.centre["a"].tolist() == [[99.0, 99.0]] * 3


def test_recentre_leaves_what_weight_lacks() -> None:
    anchor = Anchor()
    anchor.add(importances(0, 0), drawn(1))
    kept = anchor.weight["b"].clone(), anchor.centre["b"].clone()
    weight, theta = {"a": importances(2, 0)["a"]}, drawn(3)
    anchor.recentre(weight, theta)
    assert torch.equal(anchor.weight["a"], weight["a"])
    assert torch.equal(anchor.centre["a"], theta["a"])
    assert torch.equal(anchor.weight["b"], kept[0])
    assert torch.equal(anchor.centre["b"], kept[1])


@pytest.mark.parametrize("absent", ["no gradient", "not a parameter"])
def test_pull_leaves_out_what_takes_no_part(absent: str) -> None:
    anchor = Anchor()
    anchor.add(importances(0, 0), drawn(1))
    theta = {name: each.requires_grad_() for name, each in drawn(2).items()}
    theta["a"].grad = torch.zeros_like(theta["a"])
    if absent == "not a parameter":
        del theta["b"]
    anchor.pull(theta, 1.0)
    assert theta["a"].grad.all()
    if absent == "no gradient":
        assert theta["b"].grad is None
