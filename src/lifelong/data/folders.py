"""Folders of pictures, a class a folder: `path/train/<class>/*.png`, or `path/<class>/*.png`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from lifelong.data.dataset import Dataset, Samples, divided, from_tensors
from lifelong.data.images import decode
from lifelong.errors import InputError

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


def is_folder_of_classes(path: Path) -> bool:
    """Return whether `path` has pictures in folders below it."""
    return any(file.suffix.lower() in _ENDINGS for deep in ("*/*", "train/*/*") for file in path.glob(deep))


def digest(path: Path) -> str:
    """Return the digest of names, sizes and times of the pictures below `path`; their content is too much to read."""
    total = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in _ENDINGS:
            status = file.stat()
            total.update(f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}".encode())
    return total.hexdigest()


def read(path: Path, image_size: int | None) -> Dataset:
    """Return the pictures below `path`, classes in alphabetical order.

    Raises:
        InputError: no training pictures, a test class that training lacks, or pictures that cannot be read alike.
    """
    if not (path / "train").is_dir():
        classes = _classes(path)
        train, test = divided(*_samples(path, classes, image_size))
        return from_tensors(train, test, name=path.name, classes=classes)
    tests = next((path / each for each in ("test", "validation", "valid", "val") if (path / each).is_dir()), None)
    classes = _classes(path / "train")
    if tests is None:
        train, test = divided(*_samples(path / "train", classes, image_size))
    else:
        unknown = sorted(set(_classes(tests)) - set(classes))
        if unknown:
            raise InputError(f"{tests / unknown[0]} is a class that {path / 'train'} does not have")
        train, test = (_samples(part, classes, image_size) for part in (path / "train", tests))
    return from_tensors(train, test, name=path.name, classes=classes)


def _classes(path: Path) -> tuple[str, ...]:
    return tuple(sorted(each.name for each in path.iterdir() if each.is_dir()))


def _samples(path: Path, classes: tuple[str, ...], size: int | None) -> Samples:
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((path / name).glob("*"))
        if file.suffix.lower() in _ENDINGS
    ]
    if not files:
        raise InputError(f"{path} has no pictures in the folders of its classes")
    inputs = decode([file for file, _ in files], [str(file) for file, _ in files], size)
    return Samples(inputs, torch.tensor([label for _, label in files]))
