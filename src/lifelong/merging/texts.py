"""Statistics of a text classifier in a Hugging Face folder, from a table of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelong import curvature, randomness
from lifelong.data import hub, tables
from lifelong.data.text import text_column
from lifelong.errors import InputError
from lifelong.merging import collect
from lifelong.merging.checkpoint import open_model
from lifelong.models.pretrained.sources import transformers_library
from lifelong.tree import Params

# Texts that are computed at a time.
_BATCH = 32
# What transformers reads a tokenizer from. Without any of them it makes an empty one, which knows no word.
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)


def statistics(folder: Path, kind: str, texts: Sequence[str], *, longest: int = 128) -> Params:
    """Return statistics of the classifier in `folder`, as `lifelong.merging.statistics` describes them.

    No labels are needed: Fisher information is the expectation over what the model itself answers, and Gram matrices
    are of inputs alone. Texts of one length are computed together, so that none is padded and no padding is counted.

    Args:
        folder: with weights, config and tokenizer.
        kind: fisher or gram.
        texts: of the model's own task; a few hundred are enough.
        longest: tokens that are read of a text.

    Raises:
        InputError: no text classifier there, weights that are missing, or no tokenizer.
    """
    model = classifier(folder)
    batches = tokens(folder, texts, longest)
    most, known = max(int(each.max()) for each in batches), int(model.config.vocab_size)
    if most >= known:
        raise InputError(f"{folder}: its tokenizer has a token {most}, and the model knows {known}")
    if kind == "gram":
        found = collect.gram(model, batches)
    else:
        unused = [(each, torch.zeros(len(each), dtype=torch.long)) for each in batches]
        found = curvature.fisher(model, lambda ids: model(ids).logits, unused)
    kept = open_model(folder)
    strange = [name for name in found if name not in kept]
    if strange:
        raise InputError(f"{folder}: transformers knows its tensors by other names, such as {strange[0]!r}")
    return found


def classifier(folder: Path) -> Any:
    """Return the text classifier in `folder`, in float32.

    Raises:
        InputError: no transformers, a model of another kind, or weights that are missing.
    """
    transformers = transformers_library()
    kinds = list(open_model(folder).config.get("architectures") or ["nothing"])
    if not kinds[0].endswith("ForSequenceClassification"):
        raise InputError(f"{folder} holds {kinds[0]} by its config.json: statistics are collected of text classifiers")
    # Attention that is spelled out: per-sample gradients of fused kernels are taken one sample at a time.
    model, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", local_files_only=True
    )
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise InputError(f"{folder} lacks weights of {kinds[0]} ({len(missing)}): {', '.join(missing)}")
    return model.float()


def tokens(folder: Path, texts: Sequence[str], longest: int) -> list[Tensor]:
    """Return the tokens of `texts` as the tokenizer in `folder` reads them: batches `[texts, tokens]` of one length.

    Raises:
        InputError: no tokenizer there.
    """
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise InputError(f"{folder} has no tokenizer: expected {' or '.join(_VOCABULARIES)}")
    tokenizer = transformers_library().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    lengths: dict[int, list[list[int]]] = {}
    for each in tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]:
        lengths.setdefault(len(each), []).append(each)
    return [part for _, each in sorted(lengths.items()) for part in torch.tensor(each).split(_BATCH)]


def read(table: Path, column: str | None, samples: int, seed: int = 0) -> list[str]:
    """Return some of the texts in a table, drawn at random.

    Args:
        table: a CSV, JSONL or Parquet file, or a folder whose training split is meant.
        column: that holds the texts; by default the one with a usual name, or the only one.
        samples: how many; all, where there are fewer.
        seed: of the draw.

    Raises:
        InputError: no such table or column, or cells that hold no text.
    """
    import pandas

    frame = _frame(table)
    columns = [str(each) for each in frame.columns]
    holding = [each for each in columns if pandas.api.types.is_string_dtype(frame[each].dropna())]
    chosen = text_column(columns, holding, column, f"table {table}")
    if chosen is None:
        raise InputError(f"table {table} has no column of texts: it has {columns}")
    cells = list(frame[chosen])
    for row, cell in enumerate(cells):
        if not isinstance(cell, str):
            raise InputError(f"table {table}, row {row}: column {chosen!r} holds {cell!r}, and text is needed")
    drawn = torch.randperm(len(cells), generator=randomness.generator(seed, "statistics"))[:samples]
    return [cells[place] for place in drawn.tolist()]


def _frame(table: Path) -> Any:
    import pandas

    found = tables.files(table)
    if found is not None:
        return tables.read_table(found[0])
    parts = sorted(table.rglob("train*.parquet")) if hub.is_layout(table) else []
    if not parts:
        raise InputError(f"{table} is no table: give a {', '.join(tables.ENDINGS)} file, or a folder with a train one")
    return pandas.concat([tables.read_table(each) for each in parts], ignore_index=True)
