"""Networks of common layers written out with a task axis: each task has weights of its own, and one pass serves all.

Two ways to convolve with other weights for each task: `columns` multiplies batches of matrices of patches, `grouped`
folds the tasks into the channels of one grouped convolution. Both are tensor programs that autograd differentiates
twice, and on the CPU they take half the time of `torch.func.vmap` over a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lifelong.meta.columns import Window, to_columns
from lifelong.meta.normalisation import BatchNorm, Norm, affine, is_plain, normalised
from lifelong.meta.second_derivatives import batch_norm, convolve
from lifelong.models.networks import ChannelsLast
from lifelong.tree import Params

# They act on each number alone, so they need not know how tasks are laid out.
_ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.ELU, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.Softplus)
_ELEMENTWISE = (*_ACTIVATIONS, nn.Identity, ChannelsLast)
_LAYERS = (nn.Conv2d, nn.Linear, BatchNorm, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, *_ELEMENTWISE)


class Layout(Protocol):
    """How pictures of several tasks lie in one tensor, and what layers do to them there."""

    def enter(self, pictures: Tensor) -> Tensor:
        """Return `pictures` `[tasks, samples, channels, height, width]` as they are laid out."""
        ...

    def convolve(self, inputs: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d) -> Tensor:
        """Return the convolution with `weight` `[tasks, out, in, height, width]` and `bias` `[tasks, out]`."""
        ...

    def normalise(
        self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, first: int | None
    ) -> Tensor:
        """Return each task's channels normalised over its (`first`) samples and their positions."""
        ...

    def transform(self, inputs: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return `inputs * scale + shift`, these for each channel, `[tasks, channels]`."""
        ...

    def pool(self, inputs: Tensor, layer: nn.MaxPool2d) -> Tensor:
        """Return the greatest number in each window."""
        ...

    def mean(self, inputs: Tensor) -> Tensor:
        """Return the mean over positions, of which there is one then."""
        ...

    def leave(self, pictures: Tensor, tasks: int) -> Tensor:
        """Return `[tasks, samples, channels, height, width]` again."""
        ...


class Columns:
    """`[tasks, samples, height, width, channels]`: a convolution is a batched product of patches, a row each."""

    def enter(self, pictures: Tensor) -> Tensor:
        return pictures.movedim(2, -1)

    def convolve(self, inputs: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d) -> Tensor:
        window = _window(layer, inputs.shape[2:4])
        columns = to_columns(inputs, window)
        flat = weight.permute(0, 3, 4, 2, 1).flatten(1, 3)
        made = torch.bmm(columns, flat) if bias is None else torch.baddbmm(bias.unsqueeze(1), columns, flat)
        return made.view(*inputs.shape[:2], *window.places, -1)

    def normalise(
        self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, first: int | None
    ) -> Tensor:
        if first is None:
            # A call a task: the fused kernel takes half the time of the same written out over all tasks.
            each = zip(inputs.flatten(1, 3), *_each_task(len(inputs), weight, bias), strict=True)
            made = [batch_norm(task, w, b, eps) for task, w, b in each]
            return torch.stack(made).view_as(inputs)
        shape = (len(inputs), 1, 1, 1, -1)
        return normalised(inputs, inputs[:, :first], [1, 2, 3], _shaped(weight, shape), _shaped(bias, shape), eps)

    def transform(self, inputs: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return inputs * scale[:, None, None, None] + shift[:, None, None, None]

    def pool(self, inputs: Tensor, layer: nn.MaxPool2d) -> Tensor:
        pooled: Tensor = layer(inputs.flatten(0, 1).movedim(-1, 1))
        return pooled.movedim(1, -1).view(*inputs.shape[:2], *pooled.shape[2:], -1)

    def mean(self, inputs: Tensor) -> Tensor:
        return inputs.mean((2, 3), keepdim=True)

    def leave(self, pictures: Tensor, tasks: int) -> Tensor:
        return pictures.movedim(-1, 2)


class Grouped:
    """`[samples, tasks * channels, height, width]`: a convolution has a group of channels for each task."""

    def enter(self, pictures: Tensor) -> Tensor:
        return pictures.transpose(0, 1).flatten(1, 2)

    def convolve(self, inputs: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d) -> Tensor:
        flat = None if bias is None else bias.flatten()
        sizes = (_sides(layer.stride), _sides(layer.padding))
        return convolve(inputs, weight.flatten(0, 1), flat, *sizes, groups=len(weight))

    def normalise(
        self, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, first: int | None
    ) -> Tensor:
        if first is None:
            return batch_norm(inputs, _shaped(weight, (-1,)), _shaped(bias, (-1,)), eps)
        shape = (1, -1, 1, 1)
        return normalised(inputs, inputs[:first], [0, 2, 3], _shaped(weight, shape), _shaped(bias, shape), eps)

    def transform(self, inputs: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return inputs * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    def pool(self, inputs: Tensor, layer: nn.MaxPool2d) -> Tensor:
        pooled: Tensor = layer(inputs)
        return pooled

    def mean(self, inputs: Tensor) -> Tensor:
        return inputs.mean((2, 3), keepdim=True)

    def leave(self, pictures: Tensor, tasks: int) -> Tensor:
        return pictures.view(len(pictures), tasks, -1, *pictures.shape[2:]).transpose(0, 1)


def layers(module: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """Return the layers of `module` in the order in which they are called, each with its name, or None.

    None is returned where what is written out here may not be what `module` computes: a layer that is not known, a
    class that extends a known one, a forward or a hook of an object's own, a weight or a batch norm at two places.
    """
    every = list(module.named_modules(remove_duplicate=False))
    found = [(name, each) for name, each in every if type(each) is not nn.Sequential]
    # What stands at two places has one name among the weights, and among the statistics of batch norms.
    single = [
        *(id(each) for _, each in module.named_parameters(remove_duplicate=False)),
        *(id(each) for _, each in found if isinstance(each, BatchNorm)),
    ]
    plain = all(is_plain(each) for _, each in every) and len(single) == len(set(single))
    return _pooled_early(found) if plain and all(_known(layer) for _, layer in found) else None


def _pooled_early(found: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Return `found` with each ReLU after the max pooling that follows it: the same numbers, a quarter of the work."""
    ordered = list(found)
    for place in range(1, len(ordered)):
        if isinstance(ordered[place - 1][1], nn.ReLU) and isinstance(ordered[place][1], nn.MaxPool2d):
            ordered[place - 1 : place + 1] = [ordered[place], ordered[place - 1]]
    return ordered


def run(layout: Layout, found: list[tuple[str, nn.Module]], weights: Params, inputs: Tensor, norm: Norm) -> Tensor:
    """Return the outputs of a module for each task's inputs under each task's weights.

    Args:
        layout: `Columns` or `Grouped`.
        found: the module's `layers`; their own weights are not looked at.
        weights: by the names of the module, each `[tasks, ...]`.
        inputs: `[tasks, samples, ...]`.
        norm: whose statistics batch norm takes.

    Returns:
        `[tasks, samples, ...]`.
    """
    tasks, inside, outputs = len(inputs), False, inputs
    for name, layer in found:
        weight, bias = (weights.get(f"{name}.{kind}" if name else kind) for kind in ("weight", "bias"))
        pictures = isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AdaptiveAvgPool2d)
        pictures = pictures or (isinstance(layer, BatchNorm) and (inside or outputs.dim() == 5))
        if pictures and not inside:
            outputs, inside = layout.enter(outputs), True
        elif inside and not pictures and not isinstance(layer, _ELEMENTWISE):
            outputs, inside = layout.leave(outputs, tasks), False
        if isinstance(layer, BatchNorm):
            if not inside and outputs.dim() != 3:
                raise RuntimeError(f"batch norm is written out for vectors and pictures, not for {outputs.dim() - 2}-d")
            outputs = _normalised(layout, layer, weight, bias, outputs, tasks, norm.first, norm.of(name))
        else:
            outputs = _layer(layout, layer, weight, bias, outputs)
    return layout.leave(outputs, tasks) if inside else outputs


def _normalised(
    layout: Layout,
    layer: BatchNorm,
    weight: Tensor | None,
    bias: Tensor | None,
    inputs: Tensor,
    tasks: int,
    first: int | None,
    fixed: tuple[Tensor, Tensor] | None,
) -> Tensor:
    if fixed is not None:
        scale, shift = (each.expand(tasks, -1) for each in affine(*fixed, weight, bias, layer.eps))
        vectors = inputs.dim() == 3
        return inputs * scale[:, None] + shift[:, None] if vectors else layout.transform(inputs, scale, shift)
    if inputs.dim() != 3:
        return layout.normalise(inputs, weight, bias, layer.eps, first)
    shape = (len(inputs), 1, -1)
    return normalised(inputs, inputs[:, :first], [1], _shaped(weight, shape), _shaped(bias, shape), layer.eps)


def _layer(layout: Layout, layer: nn.Module, weight: Tensor | None, bias: Tensor | None, inputs: Tensor) -> Tensor:
    match layer:
        case nn.Conv2d() if weight is not None:
            outputs = layout.convolve(inputs, weight, bias, layer)
        case nn.Linear() if weight is not None:
            turned = weight.transpose(1, 2)
            outputs = torch.bmm(inputs, turned) if bias is None else torch.baddbmm(bias.unsqueeze(1), inputs, turned)
        case nn.MaxPool2d():
            outputs = layout.pool(inputs, layer)
        case nn.AdaptiveAvgPool2d():
            outputs = layout.mean(inputs)
        case nn.Flatten():
            outputs = inputs.flatten(2)
        case _:
            outputs = layer(inputs)
    return outputs


def _known(layer: nn.Module) -> bool:
    # By the very type: a class that extends one of these may compute something else.
    if type(layer) not in _LAYERS:
        return False
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
        return plain and not isinstance(layer.padding, str)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return layer.output_size in (1, (1, 1))
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    return not (isinstance(layer, nn.MaxPool2d) and layer.return_indices)


def _window(layer: nn.Conv2d, size: Sequence[int]) -> Window:
    sizes = (layer.kernel_size, layer.stride, layer.padding, size)
    return Window(*(_sides(each) for each in sizes))


def _sides(each: Sequence[int] | str) -> tuple[int, int]:
    return int(each[0]), int(each[1])


def _each_task(tasks: int, *trees: Tensor | None) -> list[Sequence[Tensor | None]]:
    return [[None] * tasks if each is None else each.unbind() for each in trees]


def _shaped(weight: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    return None if weight is None else weight.reshape(shape)
