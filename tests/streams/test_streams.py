"""What the streams do to samples, labels and splits."""

from __future__ import annotations

import pytest
import torch

from lifelong.data import Dataset, Samples, from_tensors
from lifelong.errors import InputError
from lifelong.streams import Scenario, domains, permuted, rotated, split
from lifelong.streams.assemble import Cut, Part, assemble
from lifelong.streams.transforms import rotate

CPU = torch.device("cpu")


def images(classes: int = 4, each: int = 6, name: str = "made", shape: tuple[int, ...] = (1, 4, 4)) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(classes).repeat_interleave(each)
    made = torch.randint(0, 256, (len(targets), *shape), dtype=torch.uint8, generator=generator)
    return from_tensors((made, targets), (made[::2], targets[::2]), name=name)


def test_permuted_is_one_bijection_a_task_for_training_and_test() -> None:
    data = images()
    stream = permuted(data, tasks=3)
    assert torch.equal(stream.tasks[0].train.ready(CPU).inputs, data.train.inputs)
    second, third = (stream.tasks[k].train.ready(CPU).inputs for k in (1, 2))
    assert not torch.equal(second, third)
    flat = data.train.inputs.flatten(1)
    assert torch.equal(second.flatten(1).sort(1).values, flat.sort(1).values)
    assert torch.equal(stream.tasks[1].test.ready(CPU).inputs, second[::2])
    assert not torch.equal(permuted(data, tasks=1, first_unpermuted=False).tasks[0].train.ready(CPU).inputs, second)
    assert torch.equal(permuted(data, tasks=3).tasks[2].train.ready(CPU).inputs, third)
    assert not torch.equal(permuted(data, tasks=3, seed=1).tasks[2].train.ready(CPU).inputs, third)


def test_rotation_by_a_right_angle_moves_pixels_exactly() -> None:
    pictures = images().train.inputs
    turned = rotate(pictures, torch.full((len(pictures),), 90.0))
    assert int((turned.int() - torch.rot90(pictures, 1, (2, 3)).int()).abs().max()) <= 1
    assert turned.dtype == torch.uint8
    each = rotate(pictures[:2], torch.tensor([0.0, 180.0]))
    assert int((each[0].int() - pictures[0].int()).abs().max()) <= 1
    assert int((each[1].int() - pictures[1].flip(1, 2).int()).abs().max()) <= 1


def test_rotation_keeps_the_aspect_of_a_picture_that_is_not_square() -> None:
    picture = torch.zeros(1, 1, 9, 21)
    picture[0, 0, 4, 13] = 1.0  # three to the right of the centre
    turned = rotate(picture, torch.tensor([90.0]))
    assert turned[0, 0, 1, 10] == pytest.approx(1.0, abs=1e-4)  # three above it


def test_rotated_needs_images_and_an_angle_a_task() -> None:
    assert [task.name for task in rotated(images(), tasks=3).tasks] == ["0 degrees", "60 degrees", "120 degrees"]
    with pytest.raises(InputError, match="2 angles for 3 tasks"):
        rotated(images(), tasks=3, angles=[0, 10])
    with pytest.raises(InputError, match="needs images"):
        rotated(images(shape=(5,)))


@pytest.mark.parametrize(
    ("scenario", "second"), [(Scenario.TASK, {0, 1}), (Scenario.DOMAIN, {0, 1}), (Scenario.CLASS, {2, 3})]
)
def test_split_numbers_by_scenario(scenario: Scenario, second: set[int]) -> None:
    stream = split(images(), tasks=2, scenario=scenario)
    assert set(stream.tasks[0].train.targets.tolist()) == {0, 1}
    assert set(stream.tasks[1].train.targets.tolist()) == second
    assert len(stream.tasks[1].train) == 12


def test_split_by_sizes_and_by_seed() -> None:
    sizes = split(images(), tasks=2, classes_per_task=[1, 3])
    assert [len(task.classes) for task in sizes.tasks] == [1, 3]
    orders = {split(images(8), tasks=4, shuffle_classes=True, seed=seed).classes for seed in range(4)}
    assert len(orders) > 1
    with pytest.raises(InputError, match="5 tasks need at least 5 classes"):
        split(images(), tasks=5)
    with pytest.raises(InputError, match="classes_per_task"):
        split(images(), tasks=2, classes_per_task=[3, 3])
    with pytest.raises(InputError, match="use scenario task or class"):
        split(images(), tasks=2, classes_per_task=[1, 3], scenario=Scenario.DOMAIN)


def test_domains_want_samples_of_one_shape() -> None:
    stream = domains([images(name="a"), images(name="b")])
    assert [task.name for task in stream.tasks] == ["a", "b"]
    with pytest.raises(InputError, match="samples of b have the shape"):
        domains([images(name="a"), images(name="b", shape=(1, 5, 5))])


def test_validation_is_cut_from_training_samples_only() -> None:
    data = images(each=10)
    task = permuted(data, tasks=1, cut=Cut(validation=0.2)).tasks[0]
    assert (len(task.train), len(task.validation), len(task.test)) == (32, 8, 20)
    parts = torch.cat([task.train.inputs, task.validation.inputs]).flatten(1)
    assert torch.equal(parts.unique(dim=0), data.train.inputs.flatten(1).unique(dim=0))
    assert torch.equal(task.test.inputs, data.test.inputs)
    with pytest.raises(InputError, match="none to validate on"):
        permuted(data, tasks=1, cut=Cut(validation=0.001))


def test_train_samples_and_standardize() -> None:
    task = permuted(images(each=50), tasks=1, cut=Cut(train_samples=30, standardize=True)).tasks[0]
    assert len(task.train) == 30
    whole = permuted(images(each=50), tasks=1, cut=Cut(standardize=True)).tasks[0].train.ready(CPU)
    inputs, _ = whole.batch(torch.arange(len(whole)))
    assert float(inputs.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(inputs.std()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("targets", "says"), [(torch.zeros(0, dtype=torch.int64), "no training samples"), (torch.tensor([0, 5]), "label 5")]
)
def test_a_task_that_cannot_be_learned_is_named(targets: torch.Tensor, says: str) -> None:
    train = Samples(torch.zeros(len(targets), 2), targets)
    part = Part("odd", train, Samples(torch.zeros(1, 2), torch.tensor([0])), ("a", "b"))
    with pytest.raises(InputError, match="odd") as error:
        assemble("split", "made", Scenario.TASK, [part], Cut())
    assert says in str(error.value)
