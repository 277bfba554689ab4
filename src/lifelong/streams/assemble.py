"""From samples with local labels to tasks: numbering by scenario, validation split, checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong import randomness
from lifelong.data import Samples
from lifelong.errors import InputError, unknown
from lifelong.streams.task import Arrange, Scenario, Split, Stream, Task


@dataclass(frozen=True)
class Part:
    """The samples of one task before the scenario numbers them; targets run from 0 within the task, or are numbers.

    Args:
        name: what tables call the task.
        train, test: samples with local targets.
        classes: the names of the local targets, or of the number.
        arrange: what the stream does to whole batches of inputs, or None.
    """

    name: str
    train: Samples
    test: Samples
    classes: tuple[str, ...]
    arrange: Arrange | None = None

    @property
    def numbers(self) -> bool:
        """Whether the task predicts a number."""
        return self.train.targets.is_floating_point()


@dataclass(frozen=True)
class Cut:
    """How training data is divided: shared by all kinds of stream.

    Args:
        validation: share of each task's training samples held out for validation, 0..1 exclusive.
        train_samples: keep at most so many training samples a task (drawn at random), or None for all.
        test_samples: the same for test samples.
        standardize: subtract the mean and divide by the deviation of the first task's training inputs.
        seed: of the draws.
    """

    validation: float = 0.0
    train_samples: int | None = None
    test_samples: int | None = None
    standardize: bool = False
    seed: int = 0


def assemble(name: str, data: str, scenario: Scenario, parts: Sequence[Part], cut: Cut) -> Stream:
    """Return the stream of `parts` under `scenario`.

    Task- and domain-incremental targets stay local (a head a task, one shared head); class-incremental targets are
    numbered in order of appearance, so the classes seen so far are always the first ones. Numbers to predict are put on
    the scale of their training samples, mean 0 and deviation 1: each task's own, or the first one's for a shared head.

    Raises:
        InputError: parts that do not fit the scenario, an empty task, or a validation share that leaves nothing.
    """
    if scenario not in list(Scenario):
        raise unknown("scenario", scenario, [each.value for each in Scenario])
    scenario = Scenario(scenario)
    _check_scenario(scenario, parts)
    mean, std = _statistics(parts[0]) if cut.standardize else (None, None)
    tasks: list[Task] = []
    names: list[str] = []
    some_numbers, scale = any(part.numbers for part in parts), None
    for index, part in enumerate(parts):
        offset = len(names) if scenario is Scenario.CLASS else 0
        if scenario is Scenario.CLASS:
            names += [f"{part.name}/{label}" if label in names else label for label in part.classes]
        elif len(part.classes) > len(names):
            names = list(part.classes)
        cuts = _divide(part, cut, index)
        if part.numbers and (scale is None or scenario is Scenario.TASK):
            scale = _scale(part, cuts[0].targets)
        own = scale if part.numbers else None
        train, validation, test = (
            Split(inputs, _numbered(part, targets, offset, own, some_numbers), part.arrange, mean, std)
            for inputs, targets in cuts
        )
        classes = tuple(range(offset, offset + len(part.classes)))
        tasks.append(Task(index, part.name, train, validation, test, classes, part.classes, own))
    return Stream(name, data, scenario, tuple(tasks), tuple(names))


def _numbered(
    part: Part, targets: Tensor, offset: int, scale: tuple[float, float] | None, some_numbers: bool
) -> Tensor:
    """Return local `targets` of `part` as the stream has them."""
    if scale is not None:
        scaled = ((targets - scale[0]) / scale[1]).float()
        if not bool(scaled.isfinite().all()):
            odd = float(targets[~scaled.isfinite()][0])
            raise InputError(f"task {part.name!r} has the target {odd:g}, too far from its mean {scale[0]:g}")
        return scaled
    return (targets + offset).float() if some_numbers else targets + offset


def _scale(part: Part, targets: Tensor) -> tuple[float, float]:
    """Return mean and deviation of the numbers that the task learns to predict."""
    deviation, mean = (float(each) for each in torch.std_mean(targets, correction=0))
    if deviation == 0:
        raise InputError(f"task {part.name!r} has {len(targets)} training targets that do not differ from {mean:g}")
    if not math.isfinite(deviation):
        raise InputError(f"task {part.name!r} has targets that are too large to be predicted")
    return mean, deviation


def _check_scenario(scenario: Scenario, parts: Sequence[Part]) -> None:
    some_numbers = any(part.numbers for part in parts)
    if some_numbers and scenario is Scenario.CLASS:
        raise InputError("a task predicts numbers, and scenario class tells classes apart: use scenario task or domain")
    for part in parts:
        if some_numbers and not part.numbers and len(part.classes) == 1:
            raise InputError(
                f"task {part.name!r} has one class beside tasks that predict numbers: it needs two or more"
            )
        if len(part.train.targets) == 0 or len(part.test.targets) == 0:
            which = "training" if len(part.train.targets) == 0 else "test"
            raise InputError(f"task {part.name!r} has no {which} samples: each task needs some of both")
        for targets in () if part.numbers else (part.train.targets, part.test.targets):
            if int(targets.min()) < 0 or int(targets.max()) >= len(part.classes):
                raise InputError(
                    f"task {part.name!r} has the label {int(targets.max() if targets.min() >= 0 else targets.min())}: "
                    f"its {len(part.classes)} classes are numbered 0 to {len(part.classes) - 1}"
                )
    sizes = {len(part.classes) for part in parts}
    if scenario is Scenario.DOMAIN and len(sizes) > 1:
        raise InputError(
            f"scenario domain shares one set of labels, but the tasks have {sorted(sizes)} classes: "
            "use scenario task or class, or tasks of equal size"
        )


def _divide(part: Part, cut: Cut, index: int) -> tuple[Samples, Samples, Samples]:
    test = _drawn(part.test, cut.test_samples, cut.seed, index)
    count = len(part.train.targets)
    order = torch.randperm(count, generator=randomness.generator(cut.seed, "split", index))
    if cut.train_samples is not None and cut.train_samples < count:
        order = order[: cut.train_samples]
    held = round(len(order) * cut.validation)
    if held == len(order) or (cut.validation > 0 and held == 0):
        raise InputError(
            f"validation = {cut.validation} of the {len(order)} training samples of task {part.name!r} leaves "
            f"{'none to train on' if held else 'none to validate on'}"
        )
    if len(order) == count and not held:
        return part.train, _select(part.train, order[:0]), test
    # Sorted: a gather in storage order reads memory forwards, and the shuffle comes each epoch anyway.
    kept, validation = order[held:].sort().values, order[:held].sort().values
    return _select(part.train, kept), _select(part.train, validation), test


def _drawn(samples: Samples, most: int | None, seed: int, index: int) -> Samples:
    """Return `most` of the test samples of task `index`, drawn by `seed`, or all of fewer."""
    count = len(samples.targets)
    if most is None or most >= count:
        return samples
    return _select(samples, torch.randperm(count, generator=randomness.generator(seed, "test split", index))[:most])


def _select(samples: Samples, indices: Tensor) -> Samples:
    return Samples(samples.inputs[indices], samples.targets[indices])


def _statistics(part: Part) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel of images `[n, c, h, w]`, or per feature of `[n, f]`."""
    inputs = part.train.inputs
    if not (inputs.is_floating_point() or inputs.dtype == torch.uint8):
        raise InputError("standardize needs images or real features, and these inputs are tokens")
    scaled = Split(inputs, part.train.targets).scaled(inputs)
    dims = [0, *range(2, scaled.ndim)]
    mean, std = scaled.mean(dims, keepdim=True)[0], scaled.std(dims, keepdim=True)[0]
    return mean, std.clamp_min(1e-6)
