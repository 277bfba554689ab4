"""Derivatives that are written out against finite differences and against PyTorch's own, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong.meta.second_derivatives import batch_norm, convolve

EPS = 1e-5
Function = Callable[..., Tensor]


def ours(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    return batch_norm(x, w, b, EPS)


def theirs(x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    return F.batch_norm(x, None, None, w, b, training=True, eps=EPS)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [drawn(*shape, seed=number).requires_grad_() for number, shape in enumerate(shapes)]


def second(function: Function, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradient of the square of all first gradients, of outputs that count by other numbers each."""
    outputs = function(*inputs)
    slope = drawn(*outputs.shape, seed=9).to(outputs).requires_grad_()
    first = torch.autograd.grad(outputs, inputs, slope, create_graph=True)
    counted = ((drawn(*each.shape, seed=7).to(each) * each.square()).sum() for each in first)
    total = sum(counted, torch.zeros(()).to(slope))
    return torch.autograd.grad(total, [*inputs, slope], materialize_grads=True)


@pytest.mark.parametrize("shape", [(3, 4, 2, 2), (5, 3), (2, 3, 4)])
def test_batch_norm_agrees_with_finite_differences(shape: tuple[int, ...]) -> None:
    inputs = leaves(shape, (shape[1],), (shape[1],))
    assert torch.autograd.gradcheck(ours, inputs)
    assert torch.autograd.gradgradcheck(ours, inputs)


def test_batch_norm_without_weights_or_with_weights_of_zero() -> None:
    x = leaves((4, 3, 2, 2))[0]
    assert torch.autograd.gradgradcheck(lambda x: ours(x, None, None), [x])
    zeros = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(ours, [x, zeros, zeros.detach().clone().requires_grad_()])


@pytest.mark.parametrize("places", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_batch_norm_where_some_arguments_are_constants(places: tuple[int, ...]) -> None:
    def gradients(function: Function) -> tuple[Tensor, ...]:
        inputs = [each.requires_grad_(number in places) for number, each in enumerate(leaves((4, 3, 2, 2), (3,), (3,)))]
        slope = drawn(4, 3, 2, 2, seed=9).requires_grad_()
        live = [inputs[place] for place in places]
        first = torch.autograd.grad(function(*inputs), live, slope, create_graph=True)
        return torch.autograd.grad(sum(each.pow(3).sum() for each in first), slope)  # type: ignore[arg-type]

    for mine, expected in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(mine, expected)


def test_batch_norm_of_large_means_in_single_precision() -> None:
    """Where the mean is 30 times the deviation, float32 is as near to float64 as PyTorch's own."""
    exact = [30 + drawn(8, 4, 5, 5), *leaves((4,), (4,))]
    expected = second(theirs, [each.detach().requires_grad_() for each in exact])
    rough = [each.detach().float().requires_grad_() for each in exact]
    for mine, reference, wanted in zip(second(ours, rough), second(theirs, rough), expected, strict=True):
        scale = wanted.abs().max()
        assert (mine - wanted).abs().max() <= 3 * (reference - wanted).abs().max() + 1e-5 * scale


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("stride", "padding", "groups"), [((1, 1), (1, 1), 1), ((2, 2), (1, 1), 2), ((2, 1), (0, 2), 3)]
)
def test_convolution_agrees_with_finite_differences(
    stride: tuple[int, int], padding: tuple[int, int], groups: int, bias: bool
) -> None:
    inputs = leaves((2, 2 * groups, 5, 4), (3 * groups, 2, 3, 3), (3 * groups,))[: 3 if bias else 2]

    def function(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return convolve(x, w, b, stride, padding, groups)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    expected = second(lambda x, w, b=None: F.conv2d(x, w, b, stride, padding, groups=groups), inputs)
    for mine, theirs_ in zip(second(function, inputs), expected, strict=True):
        torch.testing.assert_close(mine, theirs_)


def test_a_convolution_of_constants() -> None:
    """The first layer's pictures need no gradient, and neither do frozen weights."""
    x, w = leaves((2, 3, 5, 5), (4, 3, 3, 3))
    for live, constant in ((x, w), (w, x)):
        slope = drawn(2, 4, 5, 5, seed=5).requires_grad_()
        held = constant.detach()
        made = convolve(*((live, held) if live is x else (held, live)), None, (1, 1), (1, 1))
        (first,) = torch.autograd.grad(made, live, slope, create_graph=True)
        (found,) = torch.autograd.grad(first.pow(2).sum(), slope)
        other = F.conv2d(*((live, held) if live is x else (held, live)), None, 1, 1)
        (first,) = torch.autograd.grad(other, live, slope, create_graph=True)
        (expected,) = torch.autograd.grad(first.pow(2).sum(), slope)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "function", [lambda x: ours(x, None, None), lambda x: convolve(x, x[:, :1], None, (1, 1), (0, 0), 3)]
)
def test_a_third_derivative_is_refused(function: Function) -> None:
    x = leaves((3, 3, 2, 2))[0]
    (first,) = torch.autograd.grad(function(x).pow(3).sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(first.pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        found.sum().backward()
