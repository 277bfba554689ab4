"""Tables of numbers, or of texts, with a label column: CSV, JSON lines, Parquet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong.data.dataset import Dataset, Samples, column_of, divided, from_tensors, numbers_in, refuse_fractions
from lifelong.data.text import Reading
from lifelong.data.text import text_column as choose_text_column
from lifelong.errors import InputError, closest

_TARGETS = ("label", "target", "class", "y")
ENDINGS = (".csv", ".jsonl", ".parquet")


def files(path: Path) -> tuple[Path, Path | None] | None:
    """Return the training and the test file that `path` names (one file, or a folder with train.* and test.*)."""
    if path.is_file() and path.suffix.lower() in ENDINGS:
        return path, None
    for ending in ENDINGS:
        train, test = path / f"train{ending}", path / f"test{ending}"
        if train.is_file():
            return train, test if test.is_file() else None
    return None


def digest(found: tuple[Path, Path | None]) -> str:
    """Return the digest of the contents of the files."""
    total = hashlib.blake2b(digest_size=16)
    for path in found:
        if path is not None:
            total.update(path.suffix.encode() + path.read_bytes())
    return total.hexdigest()


def read(found: tuple[Path, Path | None], name: str, target: str | None) -> Dataset:
    """Return the rows as float32 features and labels; distinct labels, sorted, are the classes.

    Args:
        target: the label column, if it has not the usual name; with `:number` it holds numbers to predict.

    Raises:
        InputError: a file that cannot be read, a missing column, text among the features, or values that are missing.
    """
    train_path, test_path = found
    table = read_table(train_path)
    column = _target(train_path, list(table.columns), target)
    classes = _classes(train_path, table, column, column_of(target)[1])
    features = [each for each in table.columns if each != column]
    if not features:
        raise InputError(f"table {train_path} has no columns but {column!r}: there is nothing to learn from")
    train = _samples(train_path, table, features, column, classes)
    if test_path is None:
        return _dataset(name, column, classes, *divided(*train))
    return _dataset(name, column, classes, train, _samples(test_path, read_table(test_path), features, column, classes))


def text_column(path: Path, target: str | None, wanted: str | None) -> str | None:
    """Return the column of texts in the table `path`, or None where all its columns but the label are numbers.

    Raises:
        InputError: `wanted` is no column of texts, or there are several.
    """
    import pandas

    table = read_table(path)
    columns = list(table.columns)
    label = _target(path, columns, target)
    texts = [each for each in columns if each != label and pandas.api.types.is_string_dtype(table[each].dropna())]
    for each in texts:
        _refuse_stray_words(path, table, each)
    return choose_text_column(columns, texts, wanted, f"table {path}")


def read_text(found: tuple[Path, Path | None], name: str, target: str | None, reading: Reading) -> Dataset:
    """Return the texts of one column as tokens, and labels; other columns are left out. Arguments as for `read`.

    Raises:
        InputError: a file that cannot be read, a missing column, or cells that hold no text or no label.
    """
    train_path, test_path = found
    table = read_table(train_path)
    column = _target(train_path, list(table.columns), target)
    classes = _classes(train_path, table, column, column_of(target)[1])
    train = _texts(train_path, table, reading, column, classes)
    if test_path is None:
        return _dataset(name, column, classes, *divided(*train))
    return _dataset(name, column, classes, train, _texts(test_path, read_table(test_path), reading, column, classes))


def _dataset(name: str, column: str, classes: tuple[str, ...] | None, train: Samples, test: Samples) -> Dataset:
    return from_tensors(train, test, name=name, classes=classes or [column], numbers=classes is None)


def read_table(path: Path) -> Any:
    """Return the rows of the CSV, JSONL or Parquet file at `path`, of which there is at least one."""
    import pandas

    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            table = pandas.read_csv(path)
        elif kind == ".parquet":
            table = pandas.read_parquet(path)
        else:  # with types as they are written: columns called `date` or `timestamp` would become dates
            table = pandas.read_json(path, lines=True, dtype=False)
    except (ValueError, OSError) as error:
        raise InputError(f"table {path} cannot be read: {str(error).splitlines()[0]}") from error
    if table.empty:
        raise InputError(f"table {path} has no rows")
    return table


def _target(path: Path, columns: list[str], target: str | None) -> str:
    target, _ = column_of(target)
    if target is not None:
        if target not in columns:
            raise InputError(
                f"table {path} has no column {target!r}{closest(target, columns) or f': it has {columns}'}"
            )
        return target
    found = next((each for each in _TARGETS if each in columns), None)
    if found is None:
        raise InputError(f"table {path} has no label column among {columns}: name it with target")
    return found


def _classes(path: Path, table: Any, column: str, number: bool) -> tuple[str, ...] | None:
    """Return the names of the classes, or None for numbers to predict."""
    if number:
        _numbers(path, table, column)
        return None
    try:
        labels = sorted(table[column].dropna().unique())
        refuse_fractions(labels, column, f"table {path}")
        return tuple(str(each) for each in labels)
    except TypeError:  # lists cannot be hashed, and text cannot be compared with numbers
        raise InputError(f"table {path}: labels in {column!r} must be all numbers or all text") from None


def _samples(path: Path, table: Any, features: list[str], column: str, classes: tuple[str, ...] | None) -> Samples:
    import pandas

    _check_columns(path, table, (*features, column))
    for each in features:
        if not pandas.api.types.is_numeric_dtype(table[each]):
            _refuse_stray_words(path, table, each)
            raise InputError(
                f"table {path}: column {each!r} holds text, and features must be numbers: drop or encode it"
            )
    _check_values(path, table, (*features, column))
    with np.errstate(over="ignore"):  # told below
        inputs = np.array(table[features], dtype=np.float32)  # a copy: pandas may hand out memory that is read-only
    for row, place in np.argwhere(~np.isfinite(inputs))[:1]:
        column, value = features[place], table[features[place]].iloc[row]
        raise InputError(
            f"table {path}, row {row + 1}: column {column!r} holds {value}, which float32 cannot: mend or drop it"
        )
    return Samples(torch.from_numpy(inputs), _labels(path, table, column, classes))


def _refuse_stray_words(path: Path, table: Any, column: str) -> None:
    """Raise `InputError` for a column of numbers, but for less than half of its cells."""
    import pandas

    cells = table[column]
    stray = np.flatnonzero(cells.notna() & pandas.to_numeric(cells, errors="coerce").isna())
    if 0 < 2 * len(stray) < cells.count():
        row, word = stray[0], cells.iloc[stray[0]]
        raise InputError(
            f"table {path}, row {row + 1}: column {column!r} holds {word!r} among numbers: mend or drop it"
        )


def _texts(path: Path, table: Any, reading: Reading, column: str, classes: tuple[str, ...] | None) -> Samples:
    _check_columns(path, table, (reading.column, column))
    _check_values(path, table, (reading.column, column))
    return Samples(reading.tokens(list(table[reading.column]), f"table {path}"), _labels(path, table, column, classes))


def _check_columns(path: Path, table: Any, needed: Sequence[str]) -> None:
    absent = [each for each in needed if each not in table.columns]
    if absent:
        raise InputError(f"table {path} has no column {absent[0]!r}, which the training table has")


def _check_values(path: Path, table: Any, needed: Sequence[str]) -> None:
    for each in needed:
        missing = np.flatnonzero(table[each].isna())
        if len(missing):
            raise InputError(
                f"table {path}: column {each!r} lacks {len(missing)} of its {len(table)} values, first in row "
                f"{missing[0] + 1}"
            )


def _labels(path: Path, table: Any, column: str, classes: tuple[str, ...] | None) -> Tensor:
    if classes is None:
        return _numbers(path, table, column)
    index = {name: position for position, name in enumerate(classes)}
    # A label that training never saw gets one past the last, which the check of the range names.
    return torch.tensor([index.get(str(each), len(classes)) for each in table[column]])


def _numbers(path: Path, table: Any, column: str) -> Tensor:
    import pandas

    if pandas.api.types.is_string_dtype(table[column].dropna()):
        _refuse_stray_words(path, table, column)
    return numbers_in(table[column], column, f"table {path}")
