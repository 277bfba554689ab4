"""Batch norm and convolution whose second derivatives are written out, for the gradient through an inner step.

PyTorch composes them of many passes over the activations: of a second-order meta-gradient of four convolutional blocks
they take half the time. Here the second derivative of batch norm runs the kernel of its first one again, and that of a
convolution is three more convolutions. A third derivative is refused. On the CPU alone: elsewhere PyTorch's own are
taken, as these were measured on no other device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_normalise = torch.ops.aten.native_batch_norm
_normalise_backward = torch.ops.aten.native_batch_norm_backward
_convolve_backward = torch.ops.aten.convolution_backward

Pair = tuple[int, ...]


def batch_norm(inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return `inputs` normalised by their own statistics, `weight * (x - mean) / sqrt(variance + eps) + bias`.

    Args:
        inputs: `[samples, channels, ...]`.
        weight: `[channels]`, or None for ones.
        bias: `[channels]`, or None for zeros.
        eps: is added to the biased variance.
    """
    if inputs.device.type != "cpu":
        return F.batch_norm(inputs, None, None, weight, bias, training=True, eps=eps)
    outputs: Tensor = _BatchNorm.apply(inputs, weight, bias, eps)  # type: ignore[no-untyped-call]
    return outputs


def convolve(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, groups: int = 1
) -> Tensor:
    """Return the convolution of `inputs` `[samples, channels, height, width]`, as `torch.nn.functional.conv2d` does."""
    if inputs.device.type != "cpu":
        return F.conv2d(inputs, weight, bias, stride, padding, groups=groups)
    outputs: Tensor = _Convolution.apply(inputs, weight, bias, stride, padding, groups)  # type: ignore[no-untyped-call]
    return outputs


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        outputs, mean, scale = _normalise(inputs, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(inputs, weight, mean, scale)
        ctx.eps = eps
        return outputs  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, scale = ctx.saved_tensors
        found = _BatchNormBackward.apply(slope, inputs, weight, mean, scale, ctx.eps)  # type: ignore[no-untyped-call]
        wanted = ctx.needs_input_grad[:3]
        return *(each if live else None for each, live in zip(found, wanted, strict=True)), None


class _BatchNormBackward(torch.autograd.Function):
    """`dx = w r P g`, `dw = sum(g n)`, `db = sum(g)`, with `n = r (x - mean)`, `r = (variance + eps)^-1/2`.

    `P u = u - mean(u) - n mean(u n)` is its own adjoint, so that the derivative by `g` is the same kernel; that by `x`
    follows from `dr/dx = -r^2 n / M` and `d mean(u n)/dx = r P u / M`, for `M` numbers a channel.
    """

    @staticmethod
    def forward(
        ctx: Any, slope: Tensor, inputs: Tensor, weight: Tensor | None, mean: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor]
        found = _normalise_backward(slope, inputs, weight, None, None, mean, scale, True, eps, [True, True, True])
        ctx.save_for_backward(slope, inputs, weight, mean, scale, *found[1:])
        ctx.eps = eps
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_inputs: Tensor, by_weight: Tensor, by_bias: Tensor) -> tuple[Tensor | None, ...]:
        slope, inputs, weight, mean, r, slope_n, slope_sum = ctx.saved_tensors
        ones = torch.ones_like(r)
        w, count = ones if weight is None else weight, inputs.numel() // len(mean)
        # r P v with its sums `v n` and `v`; then the sum `v g`, which is the kernel's where mean is 0 and scale 1.
        projected, v_n, v_sum = _normalise_backward(
            by_inputs, inputs, ones, None, None, mean, r, True, ctx.eps, [True, True, True]
        )
        _, v_slope, _ = _normalise_backward(
            by_inputs, slope, ones, None, None, torch.zeros_like(mean), ones, True, ctx.eps, [False, True, False]
        )
        inner = v_slope - (v_sum * slope_sum + v_n * slope_n) / count
        by_slope_term = r * (by_weight - w * r * v_n / count)
        by_n = -(by_slope_term * slope_n + w * inner * r * r) / count
        to_slope = _affine(inputs, by_weight * r, by_bias - by_weight * r * mean)
        to_slope.addcmul_(projected, _channels(w, inputs))
        to_inputs = _affine(inputs, by_n * r, -by_slope_term * slope_sum / count - by_n * r * mean)
        to_inputs.addcmul_(slope, _channels(by_slope_term, inputs))
        to_inputs.addcmul_(projected, _channels(-w * r * slope_n / count, inputs))
        return to_slope, to_inputs, None if weight is None else r * inner, None, None, None


def _affine(inputs: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(_channels(shift, inputs), inputs, _channels(scale, inputs))


def _channels(each: Tensor, like: Tensor) -> Tensor:
    return each.view(1, -1, *[1] * (like.dim() - 2))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, groups: int
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.how = (stride, padding, groups)
        return F.conv2d(inputs, weight, bias, stride, padding, groups=groups)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:3]
        found = _ConvolutionBackward.apply(slope, *ctx.saved_tensors, ctx.how, wanted)  # type: ignore[no-untyped-call]
        return *found, None, None, None


class _ConvolutionBackward(torch.autograd.Function):
    """Both gradients are linear in each of their two arguments, so their derivatives are convolutions again."""

    @staticmethod
    def forward(
        ctx: Any,
        slope: Tensor,
        inputs: Tensor,
        weight: Tensor,
        how: tuple[Pair, Pair, int],
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(slope, inputs, weight)
        ctx.how = how
        return _gradients(slope, inputs, weight, how, wanted)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_inputs: Tensor | None, by_weight: Tensor | None, by_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        slope, inputs, weight = ctx.saved_tensors
        (stride, padding, groups), wanted = ctx.how, ctx.needs_input_grad
        to_slope: list[Tensor] = []
        to_inputs = to_weight = None
        if by_weight is not None:
            to_slope.append(F.conv2d(inputs, by_weight, None, stride, padding, groups=groups))
            if wanted[1]:
                to_inputs = _gradients(slope, inputs, by_weight, ctx.how, (True, False, False))[0]
        if by_inputs is not None:
            to_slope.append(F.conv2d(by_inputs, weight, None, stride, padding, groups=groups))
            if wanted[2]:
                to_weight = _gradients(slope, by_inputs, weight, ctx.how, (False, True, False))[1]
        if by_bias is not None:
            to_slope.append(_channels(by_bias, slope).expand_as(slope))
        total = sum(to_slope[1:], to_slope[0]) if to_slope else None
        return total, to_inputs, to_weight, None, None


def _gradients(
    slope: Tensor, inputs: Tensor, weight: Tensor, how: tuple[Pair, Pair, int], wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients by inputs, weight and bias of those that are `wanted`."""
    stride, padding, groups = how
    found: tuple[Tensor | None, ...] = _convolve_backward(
        slope, inputs, weight, [len(weight)], stride, padding, (1, 1), False, (0, 0), groups, list(wanted)
    )
    return found
