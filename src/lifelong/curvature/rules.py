"""Per-sample gradients of one layer from what went in and the gradient of what came out: a rule a kind of layer.

`a` is the layer's input `[batch, ...]`, `g` the gradient of each sample's scalar with respect to its output; both from
one backward pass over the whole batch. A rule returns `{parameter: [batch, *shape]}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv3d_weight

from lifelong import tree

Gradients = dict[str, Tensor]
Rule = Callable[[nn.Module, Tensor, Tensor], Gradients]


def linear(layer: nn.Linear, a: Tensor, g: Tensor) -> Gradients:
    """Outer products `g a^T`, summed over the positions of a sequence if there are any."""
    a, g = a.reshape(len(a), -1, a.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
    return _present(layer, g.transpose(1, 2) @ a, g.sum(1))


def convolution(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, a: Tensor, g: Tensor) -> Gradients:
    """Correlation of the padded input with the output's gradient, for any stride, padding, dilation and groups."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    a = F.pad(a, list(layer._reversed_padding_repeated_twice), mode=mode)
    bias = g.flatten(2).sum(2)
    if isinstance(layer, nn.Conv3d):
        return _present(layer, _convolution_3d(layer, a, g), bias)
    kernel, dilation, stride = tuple(layer.kernel_size), tuple(layer.dilation), tuple(layer.stride)
    if isinstance(layer, nn.Conv1d):
        a, kernel, dilation, stride = a.unsqueeze(2), (1, *kernel), (1, *dilation), (1, *stride)
    patches = F.unfold(a, kernel, dilation=dilation, stride=stride)
    patches = patches.reshape(len(a), layer.groups, -1, patches.shape[-1])
    g = g.reshape(len(g), layer.groups, layer.out_channels // layer.groups, -1)
    weight = g @ patches.transpose(2, 3)
    return _present(layer, weight.reshape(len(a), *layer.weight.shape), bias)


def _convolution_3d(layer: nn.Conv3d, a: Tensor, g: Tensor) -> Tensor:
    """The same by one convolution whose groups are the samples; PyTorch unfolds two dimensions only."""
    samples, width = len(a), layer.in_channels // layer.groups
    shape = [samples * layer.out_channels, width, *layer.kernel_size]
    # An input longer than the strides reach leaves a rest that the weight's gradient must not see.
    reach = [
        (out - 1) * step + dilation * (size - 1) + 1
        for out, step, dilation, size in zip(g.shape[2:], layer.stride, layer.dilation, layer.kernel_size, strict=True)
    ]
    a = a[:, :, : reach[0], : reach[1], : reach[2]]
    weight: Tensor = conv3d_weight(
        a.reshape(1, -1, *a.shape[2:]),
        shape,
        g.reshape(1, -1, *g.shape[2:]),
        stride=layer.stride,
        dilation=layer.dilation,
        groups=samples * layer.groups,
    )
    return weight.reshape(samples, *layer.weight.shape)


def batch_norm(layer: nn.Module, a: Tensor, g: Tensor) -> Gradients:
    """Batch norm with running statistics, as in evaluation mode: each channel is an affine map of its own."""
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, variance = layer.running_mean.to(a.dtype), layer.running_var.to(a.dtype)
    normal = F.batch_norm(a, mean, variance, eps=layer.eps)
    return _affine(layer, normal, g)


def group_norm(layer: nn.GroupNorm, a: Tensor, g: Tensor) -> Gradients:
    """Group norm: the affine part acts on each channel."""
    return _affine(layer, F.group_norm(a, layer.num_groups, eps=layer.eps), g)


def layer_norm(layer: nn.LayerNorm, a: Tensor, g: Tensor) -> Gradients:
    """Layer norm: the affine part acts on each normalised position."""
    normal = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    shape = (len(a), -1, *layer.normalized_shape)
    return _present(layer, (g * normal).reshape(shape).sum(1), g.reshape(shape).sum(1))


def rms_norm(layer: nn.RMSNorm, a: Tensor, g: Tensor) -> Gradients:
    """RMS norm: the gain acts on each normalised position."""
    epsilon = layer.eps
    if epsilon is None:
        # The default is that of the dtype the layer computed in, not of the one that sums are kept in.
        epsilon = torch.finfo(layer.weight.dtype).eps
    normal = F.rms_norm(a, list(layer.normalized_shape), eps=epsilon)
    return {"weight": (g * normal).reshape(len(a), -1, *layer.normalized_shape).sum(1)}


def embedding(layer: nn.Embedding, a: Tensor, g: Tensor) -> Gradients:
    """The rows that each sample looked up, summed over its positions."""
    gradient = g.new_zeros(len(a), *layer.weight.shape)
    rows = a.reshape(len(a), -1)
    values = g.reshape(len(a), -1, g.shape[-1])
    if layer.padding_idx is not None:
        values = values * (rows != layer.padding_idx).unsqueeze(-1)
    return {"weight": gradient.scatter_add_(1, rows.unsqueeze(-1).expand_as(values), values)}


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,  # type: ignore[dict-item]
    nn.Conv1d: convolution,  # type: ignore[dict-item]
    nn.Conv2d: convolution,  # type: ignore[dict-item]
    nn.Conv3d: convolution,  # type: ignore[dict-item]
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.BatchNorm3d: batch_norm,
    nn.GroupNorm: group_norm,  # type: ignore[dict-item]
    nn.LayerNorm: layer_norm,  # type: ignore[dict-item]
    nn.RMSNorm: rms_norm,  # type: ignore[dict-item]
    nn.Embedding: embedding,  # type: ignore[dict-item]
}


def gradients(layer: nn.Module, a: Tensor, g: Tensor) -> Gradients:
    """Return each parameter's per-sample gradients `[batch, *shape]`, in at least float32."""
    return RULES[type(layer)](layer, *_widened(a, g))


def moments(layer: nn.Module, a: Tensor, g: Tensor, power: int) -> Gradients:
    """Return the sum over samples of `|gradient|^power` of each parameter of `layer`, in at least float32.

    Without per-sample gradients where a product of matrices gives it, else in chunks of samples that bound memory. (A
    linear layer of a sequence needs them: Gram matrices give the norm of a sample's gradient, not its elements.)
    """
    if isinstance(layer, nn.Linear) and a.ndim == 2:
        # |g_i a_j|^p = |g_i|^p |a_j|^p, and the sum over samples is a matrix product.
        a, g = (each.abs() if power == 1 else each.square() for each in _widened(a, g))
        return _present(layer, g.t() @ a, g.sum(0))
    if isinstance(layer, nn.Embedding):
        return {"weight": _looked_up(layer, *_widened(a, g), power)}
    size = chunk(layer, g)
    totals: Gradients = {}
    for inputs, outputs in zip(a.split(size), g.split(size), strict=True):
        for name, gradient in gradients(layer, inputs, outputs).items():
            total = (gradient.abs() if power == 1 else gradient.square()).sum(0)
            totals[name] = totals[name] + total if name in totals else total
    return totals


# Numbers held at a time, of per-sample gradients and of what they are computed from: 16 MiB in float32, so that they
# are squared while still in the cache.
_NUMBERS = 1 << 22


def chunk(layer: nn.Module, g: Tensor) -> int:
    """Return how many samples of `layer`, with output gradients `g`, may be treated at a time."""
    held = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        # The unfolded input is mostly far larger than the weight: 28 times for the first layer of a ResNet-50.
        patch = layer.in_channels * math.prod(layer.kernel_size)
        held += patch * math.prod(g.shape[2:])
    return max(1, _NUMBERS // held)


def _widened(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype of at least float32: under autocast the two differ, and bfloat16 squares lose 8 bits."""
    if not a.is_floating_point():
        return a, g.to(tree.wide(g))
    dtype = torch.promote_types(a.dtype, tree.wide(g))
    return a.to(dtype), g.to(dtype)


def _looked_up(layer: nn.Embedding, a: Tensor, g: Tensor, power: int) -> Tensor:
    """The moments of an embedding from its looked-up rows alone: the whole table a sample would be far too much."""
    count, width = layer.weight.shape
    rows = a.reshape(len(a), -1)
    values = g.reshape(-1, width)
    owner = torch.arange(len(a), device=a.device).unsqueeze(1) * count
    pairs, place = (rows + owner).flatten().unique(return_inverse=True)
    sums = values.new_zeros(len(pairs), width).index_add_(0, place, values)
    sums = sums.abs() if power == 1 else sums.square()
    looked_up = pairs % count
    if layer.padding_idx is not None:
        sums = sums * (looked_up != layer.padding_idx).unsqueeze(-1)
    return values.new_zeros(count, width).index_add_(0, looked_up, sums)


def applies(layer: nn.Module) -> bool:
    """Return whether a rule holds for `layer`: of just this type, and with none of the options that break it."""
    if type(layer) not in RULES:
        return False
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return layer.running_mean is not None
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    return True


def _affine(layer: nn.Module, normal: Tensor, g: Tensor) -> Gradients:
    if g.ndim == 2:
        return _present(layer, g * normal, g)
    return _present(layer, (g * normal).flatten(2).sum(2), g.flatten(2).sum(2))


def _present(layer: nn.Module, weight: Tensor, bias: Tensor) -> Gradients:
    own = dict(layer.named_parameters(recurse=False))
    return {name: value for name, value in (("weight", weight), ("bias", bias)) if name in own}
