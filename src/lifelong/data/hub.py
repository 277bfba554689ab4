"""Data sets of the Hugging Face hub, and local folders in the hub's layout, through `datasets`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong.data.dataset import Dataset, Samples, column_of, divided, from_tensors, numbers_in, refuse_fractions
from lifelong.data.images import decode
from lifelong.data.text import Reading
from lifelong.data.text import text_column as choose_text_column
from lifelong.errors import InputError, closest

HUB = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "omniglot": "omniglot",
}

_IMAGE_COLUMNS = ("image", "img", "picture", "pixel_values")
_TARGET_COLUMNS = ("label", "labels", "target", "fine_label", "class", "character")
_TEST_SPLITS = ("test", "validation", "valid", "val")


def local_copy(name: str) -> Path | None:
    """Return the folder of that name in `LIFELONG_DATA`, or None."""
    root = os.environ.get("LIFELONG_DATA")
    if not root:
        return None
    # A name of the hub has its owner before it, a folder of several data sets those.
    return next((path for each in (name, name.rpartition("/")[2]) if (path := Path(root) / each).is_dir()), None)


def is_layout(path: Path) -> bool:
    """Return whether the folder `path` holds Parquet files, as a data set of the hub does."""
    return path.is_dir() and any(path.rglob("*.parquet"))


def digest(path: Path) -> str:
    """Return the digest of the names and contents of the Parquet files below `path`."""
    total = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*.parquet")):
        total.update(file.relative_to(path).as_posix().encode())
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def text_column(path: Path, name: str, target: str | None, wanted: str | None) -> str | None:
    """Return the column of texts in the data set in the folder `path`, or None where its inputs are pictures.

    Raises:
        InputError: `wanted` is no column of texts, or there are several.
    """
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(min(path.rglob("*.parquet")))
    except (pyarrow.ArrowInvalid, OSError):
        return None  # a damaged file is named when it is read
    if wanted is None and any(column in schema.names for column in _IMAGE_COLUMNS):
        return None
    kinds = (pyarrow.types.is_string, pyarrow.types.is_large_string)
    texts = [field.name for field in schema if any(kind(field.type) for kind in kinds)]
    label = column_of(target)[0] or next((column for column in _TARGET_COLUMNS if column in schema.names), None)
    return choose_text_column(schema.names, [each for each in texts if each != label], wanted, f"data {name}")


def read_folder(
    path: Path, name: str, target: str | None, image_size: int | None, reading: Reading | None = None
) -> Dataset:
    """Return the data set in the folder `path`; arguments and errors as for `lifelong.data.load`."""
    import datasets

    files: dict[str, list[str]] = {}
    for file in sorted(path.rglob("*.parquet")):
        files.setdefault(file.name.split("-")[0].removesuffix(".parquet"), []).append(str(file))
    datasets.disable_progress_bars()  # ours is the only bar
    try:
        tables = {part: datasets.Dataset.from_parquet(each, keep_in_memory=True) for part, each in files.items()}
    except Exception as error:  # pyarrow, datasets and fsspec each have errors of their own for a damaged file
        raise InputError(f"data {path} cannot be read: {error}") from error
    return convert(tables, name, target, image_size, reading)


def read_hub(name: str, target: str | None, image_size: int | None, reading: Reading | None = None) -> Dataset:
    """Return the data set `name` of the hub; arguments and errors as for `lifelong.data.load`."""
    # The hub is asked once and quickly: without a network the answer is wanted now, not after ten retries.
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "10")
    import datasets
    from huggingface_hub import constants

    called = HUB.get(name, name)
    offline = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not _reachable(called):
        # Otherwise both libraries ask again and again, half a minute long; a copy in their own cache is still found.
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        found = datasets.load_dataset(called)
    except Exception as error:  # offline, refused, missing and malformed each come as another library's error
        root = os.environ.get("LIFELONG_DATA")
        looked = f"there is no {Path(root) / name.rpartition('/')[2]}" if root else "LIFELONG_DATA is not set"
        reason = str(error).split("\n", 1)[0][:200]
        near = closest(name, _beside(root, name))
        raise InputError(
            f"data {name!r}{near}: no local copy ({looked}) and not to be had from the hub ({reason})"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = offline
    return convert(dict(found), name, target, image_size, reading)


def _beside(root: str | None, name: str) -> list[str]:
    """Return the local data sets of the owner that `name` begins with."""
    owner = name.rpartition("/")[0]
    return [f"{owner}/{each.name}" for each in Path(root or "", owner).glob("*") if owner and root and each.is_dir()]


def _reachable(name: str) -> bool:
    """Return whether the hub answers at all, be it with a refusal."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=5)
    except (HfHubHTTPError, ValueError):  # no such data set, a private one, a name that cannot be
        return True
    except Exception:  # the class depends on the HTTP library below
        return False
    return True


def convert(
    tables: dict[str, Any], name: str, target: str | None, image_size: int | None, reading: Reading | None = None
) -> Dataset:
    """Return the tensors of `datasets` tables by split, of texts where `reading` says how.

    Arguments as for `lifelong.data.load`.

    Raises:
        InputError: no such column, no image column, or a split that is missing.
    """
    if "background" in tables:  # Omniglot names its halves by use; for streams they are one set of classes
        import datasets

        tables = {"train": datasets.concatenate_datasets([tables["background"], tables["evaluation"]])}
    if "train" not in tables:
        raise InputError(f"data {name}: no split named train, there are {', '.join(sorted(tables))}")
    test = next((part for part in _TEST_SPLITS if part in tables), None)
    columns = tables["train"].column_names
    image = None if reading is not None else _image_column(tables["train"], name)
    label = _target_column(columns, name, target)
    classes = None if column_of(target)[1] else _classes(tables, label, name)

    def inputs(part: str) -> Tensor:
        if reading is not None:
            return _texts(tables[part], reading, f"data {name}/{part}")
        assert image is not None
        return _pictures(tables[part], image, f"{name}/{part}", image_size)

    def targets(part: str) -> Tensor:
        if classes is None:
            return _numbers(tables[part], label, f"data {name}/{part}")
        return _labels(tables[part], label, classes)

    read = {part: Samples(inputs(part), targets(part)) for part in ("train", test) if part is not None}
    train, held = divided(*read["train"]) if test is None else (read["train"], read[test])
    return from_tensors(train, held, name=name, classes=classes or [label], numbers=classes is None)


def _image_column(table: Any, name: str) -> str:
    columns: list[str] = table.column_names
    for column in (*_IMAGE_COLUMNS, *columns):
        if column in columns and type(table.features[column]).__name__ == "Image":
            return column
    for column in _IMAGE_COLUMNS:
        if column in columns:
            return column
    raise InputError(f"data {name}: no column of images among {', '.join(columns)}")


def _target_column(columns: Sequence[str], name: str, target: str | None) -> str:
    target, _ = column_of(target)
    if target is not None:
        if target not in columns:
            raise InputError(
                f"data {name}: no column {target!r}{closest(target, columns) or f' among {list(columns)}'}"
            )
        return target
    found = next((column for column in _TARGET_COLUMNS if column in columns), None)
    if found is None:
        raise InputError(f"data {name}: no label column among {', '.join(columns)}: name it with target")
    return found


def _classes(tables: dict[str, Any], label: str, name: str) -> tuple[str, ...]:
    named = getattr(tables["train"].features[label], "names", None)
    if named:
        return tuple(named)
    values = _values(tables["train"], label)
    missing = sum(each is None for each in values)
    if missing:
        raise InputError(f"data {name}: column {label!r} lacks {missing} of its {len(values)} training values")
    try:
        refuse_fractions(values, label, f"data {name}")
        return tuple(str(each) for each in sorted(set(values)))
    except TypeError:  # lists cannot be hashed
        raise InputError(f"data {name}: labels in {label!r} must be numbers or text") from None


def _values(table: Any, label: str) -> list[Any]:
    if label == "character" and "alphabet" in table.column_names:  # characters are numbered within an alphabet
        return [f"{a}/{c}" for a, c in zip(table["alphabet"], table["character"], strict=True)]
    return list(table[label])


def _labels(table: Any, label: str, classes: tuple[str, ...]) -> Tensor:
    values = _values(table, label)
    if getattr(table.features[label], "names", None):
        return torch.tensor(np.asarray(values, dtype=np.int64))
    index = {name: position for position, name in enumerate(classes)}
    # A label that training never saw gets one past the last, which the check of the range names.
    return torch.tensor([index.get(str(each), len(classes)) for each in values])


def _numbers(table: Any, label: str, where: str) -> Tensor:
    if label not in table.column_names:
        raise InputError(f"{where}: no column {label!r}, which the training samples have")
    return numbers_in(list(table[label]), label, where)


def _texts(table: Any, reading: Reading, where: str) -> Tensor:
    if reading.column not in table.column_names:
        columns = table.column_names
        raise InputError(
            f"{where}: no column {reading.column!r}{closest(reading.column, columns) or f' among {columns}'}"
        )
    return reading.tokens(list(table[reading.column]), where)


def _pictures(table: Any, column: str, name: str, size: int | None) -> Tensor:
    cells = table.data.column(column).combine_chunks().to_pylist()
    encoded: list[bytes | Path] = []
    for index, cell in enumerate(cells):
        held = cell if isinstance(cell, dict) else {}
        if held.get("bytes") is None and held.get("path") is None:
            raise InputError(f"data {name}[{index}]: column {column!r} holds no picture")
        encoded.append(held["bytes"] if held.get("bytes") is not None else Path(held["path"]))
    return decode(encoded, [f"{name}[{index}]" for index in range(len(encoded))], size)
