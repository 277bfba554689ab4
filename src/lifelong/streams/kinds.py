"""The kinds of stream: permuted, rotated, split by classes, one data set a task, and classes that blur over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from lifelong import randomness
from lifelong.data import Dataset, Samples
from lifelong.data.dataset import need_classes
from lifelong.errors import InputError
from lifelong.streams.assemble import Cut, Part, assemble
from lifelong.streams.task import Scenario, Stream
from lifelong.streams.transforms import Permute, Rotate


def permuted(
    dataset: Dataset,
    *,
    tasks: int = 5,
    scenario: Scenario = Scenario.DOMAIN,
    first_unpermuted: bool = True,
    seed: int = 0,
    cut: Cut | None = None,
) -> Stream:
    """Return `tasks` tasks that each see all samples through a fixed random order of their numbers.

    Goodfellow et al. 2013, 1312.6211; the same permutation is applied to training and test samples.

    Args:
        dataset: where the samples come from.
        tasks: how many, at least 1.
        scenario: with `class`, the same digit under another permutation counts as another class.
        first_unpermuted: the first task sees the samples as they are.
        seed: of the permutations.
        cut: how training data is divided.
    """
    numbers = dataset.train.inputs[0].numel()
    parts = []
    for index in range(tasks):
        order = torch.randperm(numbers, generator=randomness.generator(seed, "permutation", index))
        arrange = None if first_unpermuted and index == 0 else Permute(order)
        name = "unpermuted" if arrange is None else f"permutation {index}"
        parts.append(Part(name, dataset.train, dataset.test, dataset.classes, arrange))
    return assemble("permuted", dataset.name, scenario, parts, cut or Cut(seed=seed))


def rotated(
    dataset: Dataset,
    *,
    tasks: int = 5,
    scenario: Scenario = Scenario.DOMAIN,
    angles: Sequence[float] | None = None,
    seed: int = 0,
    cut: Cut | None = None,
) -> Stream:
    """Return `tasks` tasks that each see all images turned by their own angle (Lopez-Paz & Ranzato 2017, 1706.08840).

    Args:
        dataset: images `[samples, channels, height, width]`.
        tasks: how many, at least 1.
        scenario: as for `permuted`.
        angles: degrees, one a task; by default evenly from 0 up to, not including, 180.
        seed: of the division of training data.
        cut: how training data is divided.

    Raises:
        InputError: inputs that are not images, or another number of angles than tasks.
    """
    if dataset.train.inputs.ndim != 4:
        shape = tuple(dataset.train.inputs.shape[1:])
        raise InputError(f"stream rotated needs images [channels, height, width], and {dataset.name} has {shape}")
    degrees = [180.0 * index / tasks for index in range(tasks)] if angles is None else list(angles)
    if len(degrees) != tasks:
        raise InputError(f"angles names {len(degrees)} angles for {tasks} tasks: give one a task")
    parts = [
        Part(
            f"{angle:g} degrees",
            dataset.train,
            dataset.test,
            dataset.classes,
            Rotate(angle) if angle else None,
        )
        for angle in degrees
    ]
    return assemble("rotated", dataset.name, scenario, parts, cut or Cut(seed=seed))


def split(
    dataset: Dataset,
    *,
    tasks: int = 5,
    scenario: Scenario = Scenario.CLASS,
    classes_per_task: Sequence[int] | None = None,
    shuffle_classes: bool = False,
    seed: int = 0,
    cut: Cut | None = None,
) -> Stream:
    """Return `tasks` tasks that divide the classes of `dataset` among them.

    Args:
        dataset: where the samples come from.
        tasks: how many; at most the number of classes.
        scenario: domain-incremental answers with the position of the class within its task.
        classes_per_task: how many classes each task gets; by default as even as possible, earlier tasks the more.
        shuffle_classes: draw the order of the classes by `seed` instead of taking theirs.
        seed: of the order of classes.
        cut: how training data is divided.

    Raises:
        InputError: more tasks than the classes allow.
    """
    need_classes(dataset, "stream split")
    count = len(dataset.classes)
    sizes = list(classes_per_task) if classes_per_task else [len(c) for c in torch.arange(count).tensor_split(tasks)]
    if tasks > count or 0 in sizes:
        raise InputError(f"{tasks} tasks need at least {tasks} classes, and {dataset.name} has {count}")
    if len(sizes) != tasks or sum(sizes) > count:
        raise InputError(
            f"classes_per_task {sizes} must be {tasks} sizes that sum to at most the {count} classes of {dataset.name}"
        )
    order = (
        torch.randperm(count, generator=randomness.generator(seed, "classes"))
        if shuffle_classes
        else torch.arange(count)
    )
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    parts = []
    for start, end in pairwise(ends):
        chosen = order[start:end]
        names = tuple(dataset.classes[int(label)] for label in chosen)
        train, test = _only(dataset.train, chosen, count), _only(dataset.test, chosen, count)
        parts.append(Part("/".join(names) if len(names) <= 4 else f"{names[0]}...{names[-1]}", train, test, names))
    return assemble("split", dataset.name, scenario, parts, cut or Cut(seed=seed))


def domains(
    datasets: Sequence[Dataset],
    *,
    unseen: Sequence[Dataset] = (),
    scenario: Scenario = Scenario.DOMAIN,
    seed: int = 0,
    cut: Cut | None = None,
) -> Stream:
    """Return one task a data set, in the order given; where some images are coloured, grey ones become so.

    Args:
        datasets: what is learned.
        unseen: what is never learned, to see what learning the others was worth there.
        scenario: `domain` has one set of labels: classes of the same names in another order are numbered as the first
            data set's. Unseen domains need it.
        seed: of the division of training data.
        cut: how it is divided.

    Raises:
        InputError: data sets whose samples differ in shape, or whose labels do where they are shared, or unseen ones
            where labels are not shared.
    """
    if unseen and scenario is not Scenario.DOMAIN:
        raise InputError(f"unseen domains share the labels of the learned ones, and scenario {scenario.value} does not")
    learned = len(datasets)
    datasets = alike([*datasets, *unseen])
    if scenario is Scenario.DOMAIN:
        datasets = [_numbered_as(datasets[0], data) for data in datasets]
    parts = [Part(data.name, data.train, data.test, data.classes) for data in datasets]
    named = ",".join(data.name for data in datasets[:learned])
    whole = assemble("domains", named, scenario, parts, cut or Cut(seed=seed))
    return replace(whole, tasks=whole.tasks[:learned], unseen=whole.tasks[learned:])


def _numbered_as(first: Dataset, other: Dataset) -> Dataset:
    """Return `other` with its labels numbered as in `first`; names that are plain numbers agree with any."""
    if first.numbers and other.numbers:
        return other
    if first.numbers or other.numbers:
        number, labels = (first, other) if first.numbers else (other, first)
        raise InputError(
            f"scenario domain shares one head, but {number.name} predicts a number ({number.classes[0]}) and "
            f"{labels.name} classes: use scenario task, or leave one of them out"
        )
    if other.classes == first.classes or any(all(name.isdecimal() for name in each.classes) for each in (first, other)):
        return other
    if sorted(other.classes) != sorted(first.classes):
        raise InputError(
            f"scenario domain shares one set of labels, but {first.name} calls them {', '.join(first.classes[:4])} and "
            f"{other.name} {', '.join(other.classes[:4])}: name them alike, or use scenario task or class"
        )
    # One more for a label that training never saw, which is refused by its number later.
    places = torch.tensor([*(first.classes.index(name) for name in other.classes), len(first.classes)])
    train, test = (Samples(each.inputs, places[each.targets]) for each in (other.train, other.test))
    return replace(other, train=train, test=test, classes=first.classes)


def alike(datasets: Sequence[Dataset]) -> Sequence[Dataset]:
    """Return `datasets` as one network takes them all: where some images are coloured, grey ones become so.

    Raises:
        InputError: their samples differ in shape.
    """
    datasets = _coloured(datasets)
    first = datasets[0]
    for other in datasets[1:]:
        if other.train.inputs.shape[1:] != first.train.inputs.shape[1:]:
            raise InputError(
                f"samples of {other.name} have the shape {tuple(other.train.inputs.shape[1:])}, those of {first.name} "
                f"{tuple(first.train.inputs.shape[1:])}: domains need one (see image_size)"
            )
    return datasets


def blurry(
    dataset: Dataset,
    *,
    tasks: int = 5,
    blur: float = 0.1,
    classes_per_task: Sequence[int] | None = None,
    shuffle_classes: bool = False,
    seed: int = 0,
    cut: Cut | None = None,
) -> Stream:
    """Return a class-incremental `split` in which classes blur over tasks, without boundaries between these.

    Of the n training samples of a class, `round(blur * n)` drawn by `seed` leave the task that the class belongs to
    and are dealt evenly to all others. Where tasks are of equal size this is "blurry" of Bang et al. 2021, 2103.17230,
    who count the same share by task (blurry10 is 0.1). Validation and test samples stay with their class's own task.

    Args:
        dataset: where the samples come from.
        tasks: how many, at least 2; at most the number of classes.
        blur: share of a class's training samples that is found outside its task, 0 to 1.
        classes_per_task: as for `split`, as all that follows.
        shuffle_classes: draw the order of the classes by `seed`.
        seed: of the order of classes, and of the samples that leave.
        cut: how training data is divided, before samples leave.

    Raises:
        InputError: fewer than 2 tasks, more than the classes allow, or a share out of range.
    """
    if tasks < 2:
        raise InputError(f"stream blurry spreads samples over other tasks, so it needs at least 2, not tasks = {tasks}")
    if not 0 <= blur <= 1:
        raise InputError(f"blur = {blur} must be a share, 0 to 1")
    need_classes(dataset, "stream blurry")
    sharp = split(
        dataset,
        tasks=tasks,
        classes_per_task=classes_per_task,
        shuffle_classes=shuffle_classes,
        seed=seed,
        cut=cut,
    )
    inputs = torch.cat([task.train.inputs for task in sharp.tasks])
    targets = torch.cat([task.train.targets for task in sharp.tasks])
    where = torch.cat([torch.full_like(task.train.targets, task.index) for task in sharp.tasks])
    for label in range(len(sharp.classes)):
        drawn = randomness.generator(seed, "blur", label)
        mine = (targets == label).nonzero().squeeze(1)
        away = mine[torch.randperm(len(mine), generator=drawn)[: round(blur * len(mine))]]
        # How many tasks further on: never none, and each number as often as any other.
        further = 1 + torch.randperm(tasks - 1, generator=drawn)[torch.arange(len(away)) % (tasks - 1)]
        where[away] = (where[away] + further) % tasks
    blurred = []
    for task in sharp.tasks:
        here = where == task.index
        blurred.append(replace(task, train=replace(task.train, inputs=inputs[here], targets=targets[here])))
    return replace(sharp, name="blurry", tasks=tuple(blurred), boundaries=False)


def _coloured(datasets: Sequence[Dataset]) -> Sequence[Dataset]:
    """Return `datasets` with three equal channels for each grey one, if all are images and some are coloured."""
    shapes = [data.train.inputs.shape[1:] for data in datasets]
    if {len(shape) for shape in shapes} != {3} or {shape[0] for shape in shapes} != {1, 3}:
        return datasets
    return [replace(data, train=_three(data.train), test=_three(data.test)) for data in datasets]


def _three(samples: Samples) -> Samples:
    return Samples(samples.inputs.expand(-1, 3, -1, -1), samples.targets)


def _only(samples: Samples, chosen: Tensor, count: int) -> Samples:
    local = torch.full((count,), -1)
    local[chosen] = torch.arange(len(chosen))
    targets = local[samples.targets]
    keep = targets >= 0
    return Samples(samples.inputs[keep], targets[keep])
