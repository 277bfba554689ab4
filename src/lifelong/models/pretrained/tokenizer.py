"""Texts to tokens, by the tokenizer that belongs to a network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lifelong.errors import InputError
from lifelong.models.pretrained.settings import Pretrained
from lifelong.models.pretrained.sources import length, read, transformers_library


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of `transformers`, and how many tokens of a text it keeps.

    Args:
        inner: the tokenizer.
        length: tokens of a text at most, its special ones included.
        fingerprint: digest of all that its tokens depend on.
    """

    inner: Any
    length: int
    fingerprint: str

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return `[texts, length]` int64 tokens, -1 where a text has fewer."""
        rows = self.inner(list(texts), truncation=True, max_length=self.length)["input_ids"]
        tokens = torch.full((len(rows), self.length), -1)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return tokens


def tokenizer_of(name: str, chosen: Pretrained) -> Tokenizer:
    """Return the tokenizer of the model of `transformers` called `name`, or the one that `chosen` names.

    Raises:
        InputError: none is there, or the chosen one does not belong to the model.
    """
    transformers = transformers_library()
    config = read(transformers.AutoConfig, name)
    if getattr(config.get_text_config(), "vocab_size", None) is None:
        raise InputError(f"model hf:{name} reads no text, and the data holds texts: take minilm or a text encoder")
    given = name if chosen.tokenizer is None else chosen.tokenizer
    try:
        inner = transformers.AutoTokenizer.from_pretrained(given)
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"no tokenizer in {given} ({reason}): name one with model.tokenizer") from error
    most = length(name, chosen, config)
    _check_belongs(transformers, inner, given, name, config)
    words = inner.backend_tokenizer.to_str() if inner.is_fast else str(sorted(inner.get_vocab().items()))
    digest = hashlib.blake2b(f"{words} {most}".encode(), digest_size=16).hexdigest()
    return Tokenizer(inner, most, digest)


def _check_belongs(transformers: Any, inner: Any, given: str, name: str, config: Any) -> None:
    """Refuse a tokenizer whose tokens mean something else to the model."""
    vocabulary = inner.get_vocab()
    known = config.get_text_config().vocab_size
    if max(vocabulary.values()) >= known:
        raise InputError(
            f"tokenizer {given} does not belong to model hf:{name}: it has {max(vocabulary.values()) + 1} tokens, and "
            f"the model knows {known}"
        )
    if given == name:
        return
    try:
        own = transformers.AutoTokenizer.from_pretrained(name).get_vocab()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # it has none of its own to compare with
    odd = [word for word, token in own.items() if vocabulary.get(word) != token]
    if odd:
        raise InputError(
            f"tokenizer {given} does not belong to model hf:{name}: {len(odd)} of the {len(own)} tokens of its "
            f"own are others there, such as {odd[0]!r}"
        )
