"""Networks that learn, and the explicit dict of those that the command line knows."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lifelong import randomness, settings
from lifelong.errors import InputError, unknown
from lifelong.models import pretrained
from lifelong.models.network import HeadKind, Network, with_head, without_head
from lifelong.models.networks import MLP, ConvNet
from lifelong.models.pretrained import ImageTrunk, Pretrained, TextTrunk, Tokenizer, is_pretrained, prepare

MODELS: dict[str, type[MLP] | type[ConvNet]] = {"mlp": MLP, "convnet": ConvNet}

__all__ = [
    "MLP",
    "MODELS",
    "ConvNet",
    "HeadKind",
    "Network",
    "Pretrained",
    "TextTrunk",
    "Tokenizer",
    "class_embeddings",
    "is_pretrained",
    "layers_on_features",
    "prepare",
    "pretrained_settings",
    "tokenizer",
    "trunk",
    "with_head",
    "without_head",
]


def trunk(name: str, values: dict[str, Any], shape: tuple[int, ...], seed: int) -> nn.Module:
    """Return the freshly initialised trunk called `name`.

    Args:
        name: a key of `MODELS`; a pretrained one (`hf:FOLDER`, `timm:NAME`, a folder, a key of `pretrained.NAMED`); or
            `package.module:function` (called without arguments, returns a classifier whose last linear layer is taken
            off, or the one that the setting `head_name` names).
        values: the settings of the model.
        shape: of one input.
        seed: of the initial weights.

    Raises:
        InputError: an unknown model or setting, or a function that cannot be imported.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive(seed, "model"))
        chosen = pretrained_settings(name, values)
        if chosen is not None and is_pretrained(name):
            return _fitting(pretrained.load(name, chosen), name, shape)
        if chosen is not None:
            module = without_head(_imported(name), chosen.head_name)
            return module if chosen.image_size is None else ImageTrunk(module, side=chosen.image_size)
        if name not in MODELS:
            raise unknown("model", name, [*MODELS, *pretrained.NAMED])
        return settings.build(MODELS[name], values, f"model {name}").trunk(shape)


def _fitting(made: ImageTrunk | TextTrunk, name: str, shape: tuple[int, ...]) -> ImageTrunk | TextTrunk:
    """Return `made`, if it reads inputs of `shape`: images `[channels, height, width]`, or else rows of tokens."""
    if isinstance(made, ImageTrunk) != (len(shape) == 3):
        reads = "images" if isinstance(made, ImageTrunk) else "text"
        raise InputError(f"model {name} reads {reads}, and the data holds {'images' if len(shape) == 3 else 'none'}")
    return made


def pretrained_settings(name: str, values: dict[str, Any]) -> Pretrained | None:
    """Return what is said of the model `name` if its weights may be there already, else None.

    Raises:
        InputError: an unknown setting, or a value out of range.
    """
    if not is_pretrained(name) and ":" not in name:
        return None
    chosen = settings.build(Pretrained, values, f"model {name}")
    if chosen.hidden and chosen.learn != "head":
        raise InputError(f"model.hidden is for model.learn head, and model.learn is {chosen.learn}: leave it out")
    return chosen


def layers_on_features(name: str, values: dict[str, Any]) -> tuple[int, ...] | None:
    """Return the units of the layers that learn on features of the model `name`, or None where it learns itself."""
    chosen = pretrained_settings(name, values)
    return chosen.hidden if chosen is not None and chosen.learn == "head" else None


def tokenizer(name: str, values: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer of the model `name`.

    Raises:
        InputError: it reads no text, or its tokenizer is missing or another model's.
    """
    chosen = pretrained_settings(name, values)
    if chosen is None or not is_pretrained(name):
        raise InputError(f"model {name} reads no text: take minilm or hf:FOLDER of a text encoder")
    return pretrained.tokenizer(name, chosen)


def class_embeddings(name: str, values: dict[str, Any], classes: Sequence[str]) -> tuple[Tensor, float]:
    """Return embeddings `[classes, width]` of the names of classes by the text tower of `name`, and the logits' scale.

    Raises:
        InputError: it has none.
    """
    chosen = pretrained_settings(name, values)
    if chosen is None or not is_pretrained(name) or name in pretrained.NAMED or name.startswith("timm:"):
        raise InputError(f"model {name} has no text tower for head_rows class-names: take class-means, or a CLIP model")
    return pretrained.class_embeddings(name.removeprefix("hf:"), chosen, classes)


def _imported(name: str) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), function_name)()
    except (ImportError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise InputError(f"model {name!r} cannot be imported: {error}") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"model {name!r} returned a {type(made).__name__}, and a torch.nn.Module is needed")
    return made
