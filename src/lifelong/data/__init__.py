"""Where samples come from: built-in digits, the hub, folders of pictures, tables, tensors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from lifelong.data import cache as disk
from lifelong.data import folders, hub, tables
from lifelong.data.dataset import Dataset, Samples, from_tensors, only_classes
from lifelong.data.digits import digits
from lifelong.data.text import Reading, Tokenizer
from lifelong.errors import InputError, closest

NAMES = {
    "digits": "1,797 handwritten digits of 8x8 pixels, from scikit-learn; needs no download",
    "mnist": "70,000 handwritten digits of 28x28 pixels (hub: ylecun/mnist)",
    "fashion_mnist": "70,000 pictures of clothes of 28x28 pixels (hub: zalando-datasets/fashion_mnist)",
    "cifar10": "60,000 photographs of 32x32 pixels in 10 classes (hub: uoft-cs/cifar10)",
    "cifar100": "60,000 photographs of 32x32 pixels in 100 classes (hub: uoft-cs/cifar100)",
    "omniglot": "1,623 handwritten characters, 20 drawings each (hub or local copy)",
}

__all__ = ["NAMES", "Dataset", "Samples", "from_tensors", "load"]


def load(
    data: str,
    *,
    target: str | None = None,
    image_size: int | None = None,
    text: str | None = None,
    tokenizer: Callable[[], Tokenizer] | None = None,
) -> Dataset:
    """Return the data set called `data`, decoded once and kept in the cache.

    Args:
        data: a name in `NAMES`, `owner/name` on the hub (both looked for in `LIFELONG_DATA` first), a folder in the
            hub's layout (Parquet files named by split), a folder of pictures by class, or a CSV, JSONL or Parquet
            table. `DATA:5-9` are the classes 5 to 9 of it, counted from 0.
        target: name of the label column, where it is not the usual one; `NAME:number` says that its values are numbers
            to predict, and no labels.
        image_size: resize pictures to so many pixels a side.
        text: name of the text column, where it is not the usual one.
        tokenizer: gives what makes tokens of texts; asked only where there are some.

    Raises:
        InputError: nothing of that name, neither here nor on the hub, or data that is not what it should be.
    """
    some = None if Path(data).exists() else re.fullmatch(r"(.+):(\d+)-(\d+)", data)
    if some is not None:
        whole = load(some[1], target=target, image_size=image_size, text=text, tokenizer=tokenizer)
        return only_classes(whole, int(some[2]), int(some[3]))
    if data == "digits":
        for name, value in (("target", target), ("image_size", image_size), ("text", text)):
            if value is not None:
                raise InputError(f"{name} = {value!r} means nothing for the built-in digits: leave it out")
        return disk.cached(_key(f"digits scikit-learn {version('scikit-learn')}"), digits)
    how = f" target={target} image_size={image_size}"
    path = Path(data)
    found = tables.files(path)
    if found is not None and not (path.is_dir() and hub.is_layout(path)):
        if image_size is not None:
            raise InputError(f"image_size = {image_size} means nothing for {path}: a table holds no pictures")
        return _table(path, found, target, text, tokenizer)
    if not path.exists():
        local = hub.local_copy(data)
        if local is None and "/" not in data and data not in NAMES:
            raise InputError(
                f"unknown data {data!r}{closest(data, NAMES)}: it is no file or folder, and none of {', '.join(NAMES)}"
            )
        if local is None:
            asked = None if text is None else _reading(data, text, tokenizer)
            key = _key(f"hub {data}{how}{_told(asked)}")
            return disk.cached(key, lambda: hub.read_hub(data, target, image_size, asked))
        path = local
    name = data if not Path(data).exists() else path.name
    if hub.is_layout(path):
        column = hub.text_column(path, name, target, text)
        reading = None if column is None else _reading(name, column, tokenizer)
        key = _key(f"folder {name} {hub.digest(path)}{how}{_told(reading)}")
        return disk.cached(key, lambda: hub.read_folder(path, name, target, image_size, reading))
    if folders.is_folder_of_classes(path):
        if target is not None:
            raise InputError(f"target = {target!r} means nothing for {path}: pictures are labelled by their folders")
        return disk.cached(_key(f"pictures {folders.digest(path)}{how}"), lambda: folders.read(path, image_size))
    raise InputError(
        f"{path} is no data set: give a folder with Parquet files or with pictures in a folder a class, or a "
        f"{', '.join(tables.ENDINGS)} table"
    )


def _table(
    path: Path,
    found: tuple[Path, Path | None],
    target: str | None,
    text: str | None,
    tokenizer: Callable[[], Tokenizer] | None,
) -> Dataset:
    column = None if tokenizer is None and text is None else tables.text_column(found[0], target, text)
    if column is None:
        return tables.read(found, path.stem, target)
    reading = _reading(str(path), column, tokenizer)
    key = _key(f"table {path.stem} {tables.digest(found)} target={target}{_told(reading)}")
    return disk.cached(key, lambda: tables.read_text(found, path.stem, target, reading))


def _reading(where: str, column: str, tokenizer: Callable[[], Tokenizer] | None) -> Reading:
    if tokenizer is None:
        raise InputError(f"data {where} holds text in column {column!r}: it takes a tokenizer to read it")
    try:
        return Reading(column, tokenizer())
    except InputError as error:
        raise InputError(f"data {where} holds text in column {column!r}: {error}") from error


def _told(reading: Reading | None) -> str:
    return "" if reading is None else f" text={reading.column} tokenizer={reading.tokenizer.fingerprint}"


def _key(content: str) -> str:
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
