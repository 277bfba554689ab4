"""Networks with weights that are there: where they come from, how they read, and what of them learns."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lifelong.errors import InputError
from lifelong.models.pretrained.adapters import add_adapters
from lifelong.models.pretrained.settings import Pretrained
from lifelong.models.pretrained.sources import NAMED, PREFIXED, minilm_folder
from lifelong.models.pretrained.tokenizer import Tokenizer, tokenizer_of
from lifelong.models.pretrained.trunks import ImageTrunk, TextTrunk
from lifelong.models.pretrained.zero_shot import class_embeddings
from lifelong.models.rates import fix_batch_norm, set_rates

__all__ = [
    "NAMED",
    "PREFIXED",
    "ImageTrunk",
    "Pretrained",
    "TextTrunk",
    "Tokenizer",
    "class_embeddings",
    "is_pretrained",
    "load",
    "prepare",
    "tokenizer",
]


def is_pretrained(name: str) -> bool:
    """Return whether the model `name` comes with weights: `hf:`, `timm:`, a folder, or a key of `NAMED`."""
    return name in NAMED or name.startswith(tuple(PREFIXED)) or Path(name, "config.json").is_file()


def load(name: str, chosen: Pretrained) -> ImageTrunk | TextTrunk:
    """Return the trunk of the pretrained model `name` with its weights.

    Raises:
        InputError: it cannot be had, or not with these settings.
    """
    if name in NAMED:
        return NAMED[name][1](chosen)
    for prefix, (_, source) in PREFIXED.items():
        if name.startswith(prefix):
            return source(name.removeprefix(prefix), chosen)
    return PREFIXED["hf:"][1](name, chosen)


def prepare(trunk: nn.Module, chosen: Pretrained) -> dict[nn.Parameter, float]:
    """Freeze and adapt `trunk`, which has its weights, as `chosen` says.

    Returns:
        the factor on the learning rate of each parameter that has one other than 1.

    Raises:
        InputError: layers or weights that `trunk` has not.
    """
    if chosen.learn in ("lora", "dora", "ia3"):
        add_adapters(trunk, chosen)
    if chosen.fix_batch_norm:
        fix_batch_norm(trunk)
    return set_rates(trunk, chosen.layer_decay, chosen.rates)


def tokenizer(name: str, chosen: Pretrained) -> Tokenizer:
    """Return the tokenizer of the pretrained model `name`.

    Raises:
        InputError: it reads no text, or the tokenizer is missing or another model's.
    """
    if name == "efficientnet-lite0" or name.startswith("timm:"):
        raise InputError(f"model {name} reads no text: take minilm or hf:FOLDER of a text encoder")
    return tokenizer_of(minilm_folder() if name == "minilm" else name.removeprefix("hf:"), chosen)
