"""The small networks of the papers: a multilayer perceptron and a convolutional net, without their heads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lifelong.errors import InputError
from lifelong.settings import setting

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}


@dataclass(frozen=True)
class MLP:
    """Fully connected layers over the flattened input."""

    hidden: tuple[int, ...] = setting((256, 256), "units of each hidden layer")
    activation: Literal["relu", "gelu", "tanh", "elu"] = setting("relu", "what follows each layer")
    dropout: float = setting(0.0, "share of units dropped in training, 0 to 1", ge=0, lt=1)
    bias: bool = setting(True, "layers have biases")
    deviation: float | None = setting(
        None, "deviation of the first weights, cut at twice it, and the first biases; PyTorch's start by default", gt=0
    )

    def trunk(self, shape: tuple[int, ...]) -> nn.Module:
        """Return the hidden layers for samples of `shape`."""
        if min(self.hidden, default=1) < 1:
            raise InputError(f"model mlp: hidden = {self.hidden} must be numbers of units, each at least 1")
        width = 1
        layers: list[nn.Module] = [nn.Flatten()]
        for side in shape:
            width *= side
        for units in self.hidden:
            layers += [self._layer(width, units), ACTIVATIONS[self.activation]()]
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
            width = units
        return nn.Sequential(*layers)

    def _layer(self, width: int, units: int) -> nn.Linear:
        layer = nn.Linear(width, units, bias=self.bias)
        if self.deviation is not None:
            limit = 2 * self.deviation
            nn.init.trunc_normal_(layer.weight, std=self.deviation, a=-limit, b=limit)
            if self.bias:
                nn.init.constant_(layer.bias, self.deviation)
        return layer


class ChannelsLast(nn.Module):
    """Images `[batch, channels, height, width]` as they are, laid out channels last in memory on the CPU.

    What follows keeps the layout, and convolutions, normalisation and pooling of it take about half the time there
    (`benchmarks/layout.py`).
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return `images`."""
        if images.dim() != 4 or images.device.type != "cpu":
            return images
        # A copy in any case: of one channel both layouts are the same numbers in a row, and strides alone tell.
        return images.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ConvNet:
    """Blocks of 3x3 convolution, normalisation, ReLU and halving of the sides, then the mean over positions."""

    channels: tuple[int, ...] = setting((32, 64, 128), "channels of each block")
    norm: Literal["batch", "group", "none"] = setting("batch", "normalisation after each convolution")
    halve: Literal["pool", "stride"] = setting("pool", "sides are halved by 2x2 max pooling, or by convolutions' steps")

    def trunk(self, shape: tuple[int, ...]) -> nn.Module:
        """Return the blocks for images of `shape` `(channels, height, width)`."""
        if len(shape) != 3:
            raise InputError(f"model convnet needs images [channels, height, width], and the data has {shape}: try mlp")
        if min(self.channels, default=1) < 1:
            raise InputError(f"model convnet: channels = {self.channels} must be numbers, each at least 1")
        layers: list[nn.Module] = []
        width, side = shape[0], min(shape[1:])
        stride = 2 if self.halve == "stride" else 1
        for channels in self.channels:
            layers += [
                nn.Conv2d(width, channels, 3, stride=stride, padding=1, bias=self.norm == "none"),
                *self._norm(channels),
                nn.ReLU(),
            ]
            if self.halve == "pool" and side >= 2:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            width = channels
        named = {str(place): each for place, each in enumerate([*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()])}
        return nn.Sequential(OrderedDict(layout=ChannelsLast(), **named))

    def _norm(self, channels: int) -> list[nn.Module]:
        if self.norm == "batch":
            return [nn.BatchNorm2d(channels)]
        return [nn.GroupNorm(min(8, channels), channels)] if self.norm == "group" else []
