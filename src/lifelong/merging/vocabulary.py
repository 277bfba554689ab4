"""Models of different vocabularies: embeddings brought to one vocabulary, token by token, as they are read.

Vocabularies are read from `tokenizer.json`, which says all of them whatever the kind of tokenizer. A token that a model
lacks gets its embedding from the base, or else from the other models that have it (their mean), as mergekit does it.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lifelong.errors import InputError, closest
from lifelong.merging.checkpoint import Model
from lifelong.merging.recipe import MergeRecipe, Tokenizer
from lifelong.merging.rule import Values

Numbers = np.ndarray[Any, Any]
Vocabulary = Mapping[str, int]
# Where a row comes from: rows of models, whose mean it is; none of them: zeros.
Rows = tuple[tuple[str, int], ...]

_FILE = "tokenizer.json"
_NO_TOKEN = -2
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Realigned:
    """A tensor with a row for each token, in the order of another vocabulary.

    Args:
        inner: the tensor of the model.
        own: `[rows]` int64, the model's own row for each row of the result, -1 where it has none, -2 where no token is:
            these rows are the mean of all others, so that the network does not favour them.
        others: rows that come from elsewhere: the tensors and rows whose mean they are.
    """

    inner: Values
    own: Numbers
    others: Mapping[int, tuple[tuple[Values, int], ...]]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.own), *self.inner.shape[1:])

    def read(self, start: int, stop: int, step: int = 1) -> Numbers:
        """Return every `step`-th number from `start` to `stop` of the flattened tensor, float32 (float64 for such)."""
        width = math.prod(self.shape[1:])
        first, last = start // width, -(-stop // width)
        rows = [self._rows(width, *run) for run in self._runs(first, last)]
        return np.concatenate(rows)[start - first * width : stop - first * width : step]

    def _runs(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the rows from `first` to `last` as stretches that lie one behind the other in the model."""
        own = self.own[first:last]
        broken = np.flatnonzero((np.diff(own) != 1) | (own[1:] < 0) | (own[:-1] < 0)) + 1
        edges = [0, *broken.tolist(), len(own)]
        return [(first + start, first + stop) for start, stop in itertools.pairwise(edges)]

    @functools.cached_property
    def _mean(self) -> Numbers:
        width = math.prod(self.shape[1:])
        tokens = np.flatnonzero(self.own != _NO_TOKEN).tolist()
        total = np.zeros(width)
        for start in range(0, len(tokens), 256):
            stop = min(start + 256, len(tokens))
            total += self.read(start * width, stop * width).reshape(-1, width).sum(axis=0, dtype=float)
        mean: Numbers = (total / max(1, len(tokens))).astype(np.float32)
        return mean

    def _rows(self, width: int, first: int, last: int) -> Numbers:
        own = int(self.own[first])
        if own == _NO_TOKEN:
            return self._mean
        if own >= 0:
            found: Numbers = self.inner.read(own * width, (own + last - first) * width)
            return found
        drawn = [values.read(row * width, (row + 1) * width) for values, row in self.others.get(first, ())]
        if not drawn:
            return np.zeros(width, np.float32)
        total: Numbers = drawn[0]
        for each in drawn[1:]:
            total = total + each
        return total / np.float32(len(drawn)) if len(drawn) > 1 else total


@dataclass(frozen=True)
class Alignment:
    """One vocabulary for all models.

    Args:
        rows: of tensors with a row for each token.
        sizes: how many rows each model has.
        own: for each model, its own row for every row of the result, -1 where it has none.
        others: for each model, where the rows come from that it has not.
        carried: files of the tokenizer of the result.
    """

    rows: int
    sizes: Mapping[str, int]
    own: Mapping[str, Numbers]
    others: Mapping[str, Mapping[int, Rows]]
    carried: Mapping[str, Path | str]

    def concerns(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether a tensor, of these shapes in the models, has a row for each token."""
        return all(shape and shape[0] == self.sizes[model] for model, shape in shapes.items())

    def realigned(self, model: str, values: Mapping[str, Values]) -> Values:
        """Return a tensor of `model` in the vocabulary of the result; `values` are those of all models."""
        others = {
            row: tuple((values[source], place) for source, place in rows if source in values)
            for row, rows in self.others[model].items()
        }
        return Realigned(values[model], self.own[model], others)


def alignment(recipe: MergeRecipe, models: Mapping[str, Model]) -> Alignment | None:
    """Return how vocabularies are brought together, or None where the recipe does not ask for it.

    Raises:
        InputError: a model without tokenizer.json, an unknown source, or a token that its source does not have.
    """
    if recipe.tokenizer_source is None and recipe.tokenizer is None:
        return None
    asked = recipe.tokenizer or Tokenizer.model_validate({"source": recipe.tokenizer_source})
    base = recipe.base_model or next(iter(models))
    vocabularies = {name: _read(model) for name, model in models.items()}
    donor = base if asked.source in ("base", "union") else asked.source
    if donor not in models:
        raise InputError(
            f"tokenizer source {donor!r} is none of the models{closest(donor, [*models, 'base', 'union'])}"
        )
    wanted = dict(vocabularies[donor])
    more = [token for vocabulary in vocabularies.values() for token in vocabulary] if asked.source == "union" else []
    added = list(dict.fromkeys(token for token in [*more, *asked.tokens] if token not in wanted))
    free = max(wanted.values(), default=-1) + 1
    wanted |= {token: free + index for index, token in enumerate(added)}
    used = max(wanted.values()) + 1
    rows = -(-used // (asked.pad_to_multiple_of or 1)) * (asked.pad_to_multiple_of or 1)
    sizes = {name: _size(model, vocabularies[name]) for name, model in models.items()}
    own = {name: _own(wanted, used, rows, vocabularies[name], sizes[name]) for name in models}
    forced = {token: _told(token, each, vocabularies) for token, each in asked.tokens.items()}
    for token, (rows_of, force) in forced.items():
        if force and rows_of is not None:
            for each in own.values():
                each[wanted[token]] = -1
    filled = _filled(wanted, vocabularies, sizes, base, forced)
    others = {
        name: {row: filled.get(row, ()) for row in np.flatnonzero(each == -1).tolist()} for name, each in own.items()
    }
    return Alignment(rows, sizes, own, others, _carried(models[donor], added, free))


def _read(model: Model) -> dict[str, int]:
    """Return the tokens of a model and their rows."""
    path = model.path / _FILE
    if not path.is_file():
        raise InputError(f"{model.path} has no {_FILE}: vocabularies can be brought together only by it")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = described["model"]["vocab"]
        # Unigram tokenizers list tokens with their scores.
        listed = isinstance(vocabulary, list)
        tokens = {each[0]: row for row, each in enumerate(vocabulary)} if listed else dict(vocabulary)
        return tokens | {each["content"]: each["id"] for each in described.get("added_tokens") or []}
    except (ValueError, KeyError, TypeError, IndexError):
        raise InputError(f"{path} does not describe a tokenizer with a vocabulary") from None


def _size(model: Model, vocabulary: Vocabulary) -> int:
    """Return how many rows a model has for tokens; there may be more than tokens."""
    size = model.config.get("vocab_size")
    return size if isinstance(size, int) else max(vocabulary.values()) + 1


def _own(wanted: Vocabulary, used: int, rows: int, vocabulary: Vocabulary, size: int) -> Numbers:
    own = np.full(rows, -1, np.int64)
    own[used:] = _NO_TOKEN
    for token, row in wanted.items():
        place = vocabulary.get(token, -1)
        own[row] = place if place < size else -1
    return own


def _told(token: str, described: Any, vocabularies: Mapping[str, Vocabulary]) -> tuple[Rows | None, bool]:
    """Return the rows that the recipe names for a token (None: it names none), and whether it must be these."""
    if not isinstance(described, dict) or set(described) - {"source", "force"}:
        raise InputError(f"tokens: {token!r} must have a source, and perhaps force, and is {described!r}")
    source, force = described.get("source"), bool(described.get("force", False))
    if source is None:
        return None, force
    if isinstance(source, dict) and source.get("kind") == "zero":
        return (), force
    if isinstance(source, dict) and source.get("kind") == "model_token":
        model, other = str(source.get("model")), source.get("token")
    elif isinstance(source, str):
        model, other = source, token
    else:
        raise InputError(f"tokens: the source of {token!r} must be a model, zero or model_token, and is {source!r}")
    if model not in vocabularies:
        raise InputError(f"tokens: {token!r} comes from {model!r}, which is none of the models")
    row = source.get("token_id") if isinstance(source, dict) and other is None else vocabularies[model].get(str(other))
    if not isinstance(row, int):
        raise InputError(f"tokens: {model} has no token {other!r}, which {token!r} would come from")
    return ((model, row),), force


def _filled(
    wanted: Vocabulary,
    vocabularies: Mapping[str, Vocabulary],
    sizes: Mapping[str, int],
    base: str,
    forced: Mapping[str, tuple[Rows | None, bool]],
) -> dict[int, Rows]:
    """Return where each row comes from in models that lack it."""
    found: dict[int, Rows] = {}
    for token, row in wanted.items():
        told = forced.get(token, (None, False))[0]
        having = [(name, v[token]) for name, v in vocabularies.items() if v.get(token, sizes[name]) < sizes[name]]
        from_base = tuple(each for each in having if each[0] == base)
        found[row] = told if told is not None else from_base or tuple(having)
    return found


def _carried(donor: Model, added: Sequence[str], free: int) -> dict[str, Path | str]:
    """Return the tokenizer's file with tokens added behind its own."""
    path = donor.path / _FILE
    if not added:
        return {_FILE: path}
    described = json.loads(path.read_text(encoding="utf-8"))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    entries = [{"id": free + index, "content": token, **plain} for index, token in enumerate(added)]
    described["added_tokens"] = [*(described.get("added_tokens") or []), *entries]
    return {_FILE: json.dumps(described, ensure_ascii=False)}


def chat_template(recipe: MergeRecipe, models: Mapping[str, Model]) -> dict[str, Path | str]:
    """Return the file of the chat template that the recipe asks for: a template, or `auto`, the most common one.

    Raises:
        InputError: a word that is neither.
    """
    asked = recipe.chat_template
    if not asked:
        return {}
    if asked == "auto":
        found = Counter(text.strip() for model in models.values() if (text := _template_of(model)))
        return {_TEMPLATE: found.most_common(1)[0][0]} if found else {}
    if "{" not in asked:
        raise InputError(f"chat_template = {asked!r} must be a template or auto")
    return {_TEMPLATE: asked}


def _template_of(model: Model) -> str | None:
    path = model.path / _TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    config = model.path / "tokenizer_config.json"
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    except ValueError:
        return None
    return found if isinstance(found, str) else None
