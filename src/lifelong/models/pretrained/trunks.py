"""Pretrained networks as trunks: what stands between stored samples and the network, and what pools its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong.errors import InputError

# So many images at a time where no gradient is wanted: their activations stay in the CPU's cache.
_IMAGES = 64
# And so many texts of like length: enough rows for matrix products, and few of them padding.
_TEXTS = 16

Pool = Callable[[Any, Tensor | None], Tensor]


class ImageTrunk(nn.Module):
    """Features of images after they are made what a pretrained network knows: coloured, resized, normalised.

    All on whole batches, where the network is.

    Args:
        encoder: takes images `[batch, 3, side, side]`.
        pool: makes features `[batch, width]` of what the encoder returns.
        side: pixels a side that images are resized to (bilinear, antialiased where they shrink), or None.
        mean, std: of each channel on the scale 0..1, or None.
        options: what the encoder is told besides.
    """

    def __init__(
        self,
        encoder: nn.Module,
        pool: Pool | None = None,
        *,
        side: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = pool
        self.side = side
        self.options = dict(options or {})
        # Not persistent: they are settings, and a file of weights has only what was learned.
        for name, values in (("mean", mean or (0.0,)), ("std", std or (1.0,))):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Return features `[batch, width]` of `images` `[batch, 1 or 3, height, width]` in 0..1."""
        if torch.is_grad_enabled() or len(images) <= _IMAGES:
            return self._features(images)
        return torch.cat([self._features(piece) for piece in images.split(_IMAGES)])

    def _features(self, images: Tensor) -> Tensor:
        output = self.encoder(self.prepared(images), **self.options)
        features: Tensor = output if self.pool is None else self.pool(output, None)
        return features

    def prepared(self, images: Tensor) -> Tensor:
        """Return `images` as the encoder takes them."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.side is not None and images.shape[2:] != (self.side, self.side):
            shrinks = max(images.shape[2:]) > self.side
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=shrinks)
        # Measured on the CPU: convolutions of small images take a third of the time with channels last.
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class TextTrunk(nn.Module):
    """Features of texts: `[batch, length]` tokens, -1 where a shorter text has none.

    A batch is gone through in pieces of like length, so that little is computed on padding; the answers keep their
    order. Where gradients are wanted in evaluation mode (importances) it stays whole, as layers must see `[batch, ...]`
    then.

    Args:
        encoder: a model of `transformers`, called with `input_ids` and `attention_mask`.
        pool: makes features `[batch, width]` of what it returns and of the mask `[batch, length]`.
        pad: the token that padding is given as.
        vocabulary: how many tokens the encoder knows.
    """

    def __init__(self, encoder: nn.Module, pool: Pool, *, pad: int, vocabulary: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = pool
        self.pad = pad
        self.vocabulary = vocabulary

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features `[batch, width]`."""
        if torch.is_grad_enabled() and not self.training:
            return self._features(tokens)
        lengths = (tokens >= 0).sum(1)
        order = lengths.argsort(descending=True, stable=True)
        pieces = [
            self._features(tokens[piece, : max(1, longest)])
            for piece, longest in zip(order.split(_TEXTS), lengths[order[::_TEXTS]].tolist(), strict=True)
        ]
        return torch.cat(pieces)[order.argsort()]

    def _features(self, tokens: Tensor) -> Tensor:
        mask = tokens >= 0
        inputs = tokens.masked_fill(~mask, self.pad)
        return self.pool(self.encoder(input_ids=inputs, attention_mask=mask.long()), mask)


def mean_of_tokens(output: Any, mask: Tensor | None) -> Tensor:
    """Return the mean of the last hidden states over the tokens that there are, or over the places of maps.

    They are `[batch, length, width]`, or `[batch, width, rows, columns]` of networks of convolutions.
    """
    states: Tensor = output.last_hidden_state
    if states.ndim == 4:
        return states.mean((2, 3))
    if mask is None:
        return states.mean(1)
    weight = mask.unsqueeze(2).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)


def first_token(output: Any, mask: Tensor | None) -> Tensor:
    """Return the last hidden state of the first token, `[batch, width]`.

    Raises:
        InputError: the network has maps, and no tokens.
    """
    states: Tensor = output.last_hidden_state
    if states.ndim == 4:
        raise InputError("pooling = first: the network's last states are maps and no tokens, so take pooling mean")
    return states[:, 0]


def own_or_first(output: Any, mask: Tensor | None) -> Tensor:
    """Return what the model itself pools, where it does without a module for it, or else the first token's state."""
    return first_token(output, mask) if output.get("pooler_output") is None else pooled(output, mask)


def pooled(output: Any, mask: Tensor | None) -> Tensor:
    """Return what the model itself pools, `[batch, width]`."""
    features: Tensor = output.pooler_output
    return features.flatten(1)


def projected(output: Any, mask: Tensor | None) -> Tensor:
    """Return the image features in the space that images and texts share (CLIP), `[batch, width]`."""
    features: Tensor = output.image_embeds
    return features
