"""What every source of data gives: samples as whole tensors, with the names of their classes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lifelong import randomness
from lifelong.errors import InputError

# Where a source has no test samples of its own, this share of each class is held out.
TEST_SHARE = 0.2
# Behind the name of a target: its values are numbers to predict, and no labels.
NUMBER = ":number"


class Samples(NamedTuple):
    """Labelled samples.

    Args:
        inputs: `[samples, channels, height, width]` uint8 images, `[samples, features]` floating point, or
            `[samples, length]` int64 tokens, -1 where a text has fewer.
        targets: `[samples]` int64 in `0 .. classes - 1`, or float64 numbers to predict.
    """

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Dataset:
    """Training and test samples of one labelling.

    Args:
        name: what tables call it.
        train, test: samples of the same shape and dtype.
        classes: names of the labels; of a number that is to be predicted, its one name.
        fingerprint: hexadecimal digest of the content.
    """

    name: str
    train: Samples
    test: Samples
    classes: tuple[str, ...]
    fingerprint: str

    @property
    def numbers(self) -> bool:
        """Whether the targets are numbers to predict, and no labels."""
        return self.train.targets.is_floating_point()


def from_tensors(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    name: str = "tensors",
    classes: Sequence[str] | None = None,
    numbers: bool = False,
) -> Dataset:
    """Return the data set of tensors that are at hand.

    Args:
        train: `(inputs, targets)`: `[samples, ...]` uint8 (0..255), floating point or int64; `[samples]` integers, or
            with `numbers` real ones of any kind. Arrays of numpy will do.
        test: the same for test samples.
        name: what tables call it.
        classes: names of the labels; by default the numbers up to the greatest training target.
        numbers: targets are numbers to predict, `classes` the name of what they are.

    Raises:
        InputError: no samples, unlike lengths or shapes, labels that are no integers or out of range, values that are
            not finite, numbers to predict that are all the same.
    """
    named = {"train": _checked(name, "train", *train, numbers), "test": _checked(name, "test", *test, numbers)}
    if named["train"].inputs.shape[1:] != named["test"].inputs.shape[1:]:
        shapes = [tuple(each.inputs.shape[1:]) for each in named.values()]
        raise InputError(f"{name}: training samples have the shape {shapes[0]} and test samples {shapes[1]}")
    whole = _fingerprint(*named["train"], *named["test"])
    if numbers:
        if classes is not None and len(classes) != 1:
            raise InputError(f"{name}: classes = {list(classes)} is the one name of the numbers to predict")
        targets = named["train"].targets
        if bool((targets == targets[0]).all()):
            raise InputError(f"{name}: all training targets are {targets[0]:g}, so there is nothing to predict")
        return Dataset(name, named["train"], named["test"], tuple(classes or ["target"]), whole)
    count = len(classes) if classes is not None else int(named["train"].targets.max()) + 1
    for part, samples in named.items():
        low, high = int(samples.targets.min()), int(samples.targets.max())
        if low < 0 or high >= count:
            wrong = low if low < 0 else high
            raise InputError(f"{name}: the label {wrong} in {part} is outside 0 to {count - 1} ({count} classes)")
    present = torch.bincount(named["train"].targets, minlength=count)
    if int(present.min()) == 0:
        missing = int(present.argmin())
        raise InputError(f"{name}: class {classes[missing] if classes else missing} has no training samples")
    labels = tuple(classes) if classes is not None else tuple(str(label) for label in range(count))
    return Dataset(name, named["train"], named["test"], labels, whole)


def only_classes(dataset: Dataset, first: int, last: int) -> Dataset:
    """Return the samples of the classes `first` to `last` of `dataset`, which are numbered from 0 then.

    Raises:
        InputError: classes that `dataset` has not.
    """
    need_classes(dataset, "a choice of classes")
    count = len(dataset.classes)
    if not first <= last < count:
        raise InputError(
            f"{dataset.name} has no classes {first}-{last}: its {count} classes are numbered 0 to {count - 1}"
        )
    kept = []
    for inputs, targets in (dataset.train, dataset.test):
        chosen = (targets >= first) & (targets <= last)
        kept.append((inputs[chosen], targets[chosen] - first))
    named = f"{dataset.name}:{first}-{last}"
    return from_tensors(kept[0], kept[1], name=named, classes=dataset.classes[first : last + 1])


def need_classes(dataset: Dataset, what: str) -> None:
    """Raise `InputError` if `dataset` has numbers to predict, where `what` is made of classes."""
    if dataset.numbers:
        raise InputError(
            f"{what} needs classes, and the targets of {dataset.name}, {dataset.classes[0]}, are numbers to predict: "
            "divide them into classes"
        )


def column_of(target: str | None) -> tuple[str | None, bool]:
    """Return the name of the column that `target` means, None for the usual one, and whether it is a number."""
    number = target is not None and target.endswith(NUMBER)
    return (target.removesuffix(NUMBER) if target is not None else None), number


def numbers_in(values: Iterable[object], column: str, where: str) -> Tensor:
    """Return the numbers to predict, float64; whole numbers, fractions, decimals, digits, true and false will do.

    Raises:
        InputError: text, dates or times; `where` names the table.
    """
    import pandas

    cells, kinds = pandas.Series(values), pandas.api.types
    if kinds.is_datetime64_any_dtype(cells) or kinds.is_timedelta64_dtype(cells):
        raise InputError(f"{where}: target {column!r} holds dates or times: write them as numbers of your unit")
    found = pandas.to_numeric(cells, errors="coerce")
    if bool((found.isna() & cells.notna()).any()):
        raise InputError(f"{where}: target {column!r} is said to be a number, and it holds text")
    return torch.from_numpy(np.array(found, dtype=np.float64))


def refuse_fractions(values: Iterable[object], column: str, where: str) -> None:
    """Raise `InputError` for a fraction among the `values` of the label `column`: they are no labels."""
    for each in values:
        if isinstance(each, float | np.floating | Decimal) and not float(each).is_integer():
            raise InputError(
                f"{where}: label column {column!r} holds fractions such as {each:g}, and labels are classes: say "
                f"target = {column}{NUMBER} to predict them as numbers, or divide them into classes"
            )


def divided(inputs: Tensor, targets: Tensor) -> tuple[Samples, Samples]:
    """Return `(train, test)`: of each class `TEST_SHARE` is drawn for testing, the same samples every time.

    Numbers to predict are drawn from as one class.
    """
    held = torch.zeros(len(targets), dtype=torch.bool)
    generator = randomness.generator(0, "test")
    groups = torch.zeros_like(targets) if targets.is_floating_point() else targets
    for label in groups.unique():
        places = (groups == label).nonzero().flatten()
        count = max(1, round(len(places) * TEST_SHARE)) if len(places) > 1 else 0
        held[places[torch.randperm(len(places), generator=generator)[:count]]] = True
    return Samples(inputs[~held], targets[~held]), Samples(inputs[held], targets[held])


def _checked(name: str, part: str, inputs: Tensor, targets: Tensor, numbers: bool) -> Samples:
    try:
        inputs, targets = torch.as_tensor(inputs), torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: {part} samples are no tensors, nor arrays of numbers ({error})") from None
    if len(inputs) == 0:
        raise InputError(f"{name}: {part} has no samples")
    if len(inputs) != len(targets) or targets.ndim != 1:
        raise InputError(
            f"{name}: {part} has {len(inputs)} inputs and targets of shape {tuple(targets.shape)}: one target a sample"
        )
    if (targets.is_floating_point() or targets.dtype == torch.bool) and not numbers:
        raise InputError(
            f"{name}: {part} targets are {targets.dtype}, and class labels must be integers from 0 "
            "(numbers = True, if they are numbers to predict)"
        )
    if numbers and targets.is_complex():
        raise InputError(f"{name}: {part} targets are {targets.dtype}, and numbers to predict must be real")
    if numbers and not bool(torch.isfinite(targets).all()):
        raise InputError(f"{name}: {int((~torch.isfinite(targets)).sum())} of the {part} targets are no finite numbers")
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        count = int((~torch.isfinite(inputs)).sum())
        raise InputError(f"{name}: {count} values of the {part} inputs are not finite numbers")
    return Samples(inputs.contiguous(), targets.to(torch.float64 if numbers else torch.int64))


def _fingerprint(*tensors: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()
