"""Patches of pictures as columns of a matrix, and back: each the other's derivative, so any order of it is at hand."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Window(NamedTuple):
    """A convolution's window: its sides, step and border of zeros, in pixels, and the sides of the picture."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    size: tuple[int, int]

    @property
    def places(self) -> tuple[int, int]:
        """How many places the window has in each direction."""
        rows, columns = (
            (side + 2 * pad - kernel) // stride + 1
            for side, pad, kernel, stride in zip(self.size, self.padding, self.kernel, self.stride, strict=True)
        )
        return rows, columns


def to_columns(pictures: Tensor, window: Window) -> Tensor:
    """Return what the window sees at each of its places, "im2col".

    Args:
        pictures: `[tasks, samples, height, width, channels]`.

    Returns:
        `[tasks, samples * places, kernel height * kernel width * channels]`.
    """
    columns: Tensor = _ToColumns.apply(pictures, window)  # type: ignore[no-untyped-call]
    return columns


class _ToColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pictures: Tensor, window: Window) -> Tensor:
        ctx.window, ctx.shape = window, pictures.shape
        return _gather(pictures, window)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _FromColumns.apply(gradient, ctx.window, ctx.shape), None  # type: ignore[no-untyped-call]


class _FromColumns(torch.autograd.Function):
    """The adjoint: each pixel gets the sum over all windows that saw it, "col2im"."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, window: Window, shape: torch.Size) -> Tensor:
        ctx.window = window
        return _scatter(columns, window, shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _ToColumns.apply(gradient, ctx.window), None, None  # type: ignore[no-untyped-call]


def _gather(pictures: Tensor, window: Window) -> Tensor:
    tasks, samples, _, _, channels = pictures.shape
    padded = F.pad(pictures, [0, 0, *[window.padding[1]] * 2, *[window.padding[0]] * 2])
    columns = pictures.new_empty(tasks, samples, *window.places, *window.kernel, channels)
    for row in range(window.kernel[0]):
        for column in range(window.kernel[1]):
            columns[..., row, column, :] = _seen(padded, window, row, column)
    return columns.view(tasks, -1, window.kernel[0] * window.kernel[1] * channels)


def _scatter(columns: Tensor, window: Window, shape: torch.Size) -> Tensor:
    tasks, samples, height, width, channels = shape
    parts = columns.view(tasks, samples, *window.places, *window.kernel, channels)
    top, left = window.padding
    padded = columns.new_zeros(tasks, samples, height + 2 * top, width + 2 * left, channels)
    for row in range(window.kernel[0]):
        for column in range(window.kernel[1]):
            _seen(padded, window, row, column).add_(parts[..., row, column, :])
    return padded[:, :, top : top + height, left : left + width]


def _seen(padded: Tensor, window: Window, row: int, column: int) -> Tensor:
    """Return the view of all pixels that stand at `(row, column)` of the window, in any of its places."""
    rows, columns = window.places
    down, across = window.stride
    return padded[:, :, row : row + down * (rows - 1) + 1 : down, column : column + across * (columns - 1) + 1 : across]
