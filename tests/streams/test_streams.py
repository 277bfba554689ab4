"""What the streams do to samples, labels and splits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lifelong.data import Dataset, Samples, from_tensors
from lifelong.errors import InputError
from lifelong.streams import Scenario, blurry, domains, permuted, rotated, split
from lifelong.streams.assemble import Cut, Part, assemble
from lifelong.streams.transforms import Augment, Rotate, rotate

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


def test_grey_images_become_coloured_beside_coloured_ones() -> None:
    grey, coloured = images(name="grey"), images(name="coloured", shape=(3, 4, 4))
    stream = domains([grey, coloured])
    assert torch.equal(stream.tasks[0].train.inputs, grey.train.inputs.repeat(1, 3, 1, 1))
    assert torch.equal(stream.tasks[1].test.inputs, coloured.test.inputs)
    assert domains([grey, grey]).input_shape == (1, 4, 4)
    with pytest.raises(InputError, match="see image_size"):
        domains([images(shape=(1, 8, 8)), coloured])


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


def test_domains_share_labels_by_name() -> None:
    inputs, targets = torch.rand(4, 3), torch.tensor([0, 0, 1, 1])

    def named(name: str, *classes: str) -> Dataset:
        return from_tensors((inputs, targets), (inputs, targets), name=name, classes=classes)

    first, turned, other = named("a", "bad", "good"), named("b", "good", "bad"), named("c", "neg", "pos")
    stream = domains([first, turned])
    assert stream.classes == ("bad", "good")
    assert stream.tasks[1].train.targets.tolist() == stream.tasks[1].test.targets.tolist() == [1, 1, 0, 0]
    with pytest.raises(
        InputError, match="a calls them bad, good and c neg, pos: name them alike, or use scenario task"
    ):
        domains([first, other])
    with pytest.raises(InputError, match="a calls them bad, good and c neg, pos"):
        domains([first], unseen=[other])
    for scenario in (Scenario.TASK, Scenario.CLASS):
        assert len(domains([first, other], scenario=scenario)) == 2
    assert domains([first, named("d", "0", "1")]).tasks[1].train.targets.tolist() == [0, 0, 1, 1]


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


def test_every_permutation_is_the_same_for_all_samples_of_its_task() -> None:
    numbers = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).repeat(4, 1, 1, 1)
    labels = torch.tensor([0, 1, 0, 1])
    data = from_tensors((numbers, labels), (numbers, labels))
    for task in permuted(data, tasks=4).tasks[1:]:
        for part in (task.train, task.test):
            orders = part.ready(CPU).inputs.flatten(1)
            assert torch.equal(orders, orders[:1].expand(4, -1))
            assert sorted(orders[0].tolist()) == list(range(16))
            assert orders[0].tolist() != list(range(16))


@pytest.mark.parametrize(("degrees", "turns"), [(90.0, 1), (180.0, 2), (270.0, 3), (-90.0, -1), (360.0, 0)])
def test_right_angles_are_torch_rot90(degrees: float, turns: int) -> None:
    pictures = images(shape=(3, 7, 7)).train.inputs
    turned = rotated(images(shape=(3, 7, 7)), tasks=1, angles=[degrees]).tasks[0].train.ready(CPU).inputs
    assert turned.dtype == torch.uint8
    assert int((turned.int() - torch.rot90(pictures, turns, (2, 3)).int()).abs().max()) <= 1


def test_a_picture_that_is_not_square_turns_about_its_centre() -> None:
    picture = torch.zeros(2, 1, 8, 5)
    picture[:, 0, 1, 1] = 1.0
    half, none = rotate(picture, torch.tensor([180.0, 0.0]))
    torch.testing.assert_close(half, picture[0].flip(1, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(none, picture[1], atol=1e-4, rtol=0)


def test_every_image_has_its_own_angle() -> None:
    pictures = images().train.inputs[:3].float()
    angles = torch.tensor([15.0, 90.0, 200.0])
    together = rotate(pictures, angles)
    for index in range(3):
        torch.testing.assert_close(
            together[index : index + 1], rotate(pictures[index : index + 1], angles[index : index + 1])
        )
    assert not torch.allclose(rotate(pictures[:1], angles[:1]), rotate(pictures[:1], angles[2:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_one_angle_for_all_pictures_is_that_of_each(dtype: torch.dtype) -> None:
    pictures = (255 * torch.rand(5, 3, 8, 12, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert torch.equal(Rotate(33.0)(pictures), rotate(pictures, torch.full((5,), 33.0)))
    assert Rotate(33.0)(pictures[:0]).shape == (0, 3, 8, 12)


def test_split_sizes_are_even_and_earlier_tasks_get_the_more() -> None:
    stream = split(images(7), tasks=3)
    assert [len(task.classes) for task in stream.tasks] == [3, 2, 2]
    assert [task.classes for task in stream.tasks] == [(0, 1, 2), (3, 4), (5, 6)]
    some = split(images(7), tasks=2, classes_per_task=[2, 1])
    assert some.classes == ("0", "1", "2")


def test_the_order_of_classes_is_the_seeds() -> None:
    data = images(8)
    once, again = (split(data, tasks=4, shuffle_classes=True, seed=3) for _ in range(2))
    assert once.classes == again.classes
    assert sorted(once.classes) == sorted(data.classes)
    # Under any order the numbering is that of appearance, and each sample keeps its class.
    for task in once.tasks:
        assert sorted(set(task.train.targets.tolist())) == list(task.classes)
        for target in task.classes:
            mine = task.train.inputs[task.train.targets == target]
            theirs = data.train.inputs[data.train.targets == int(once.classes[target])]
            assert torch.equal(mine, theirs)


def test_a_class_that_occurs_again_in_another_task_is_another_class() -> None:
    stream = permuted(images(2), tasks=2, scenario=Scenario.CLASS)
    assert stream.classes == ("0", "1", "permutation 1/0", "permutation 1/1")
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3)]
    assert set(stream.tasks[1].test.targets.tolist()) == {2, 3}


def test_validation_and_training_are_disjoint_and_the_same_every_time() -> None:
    numbered = torch.arange(40.0).unsqueeze(1)
    data = from_tensors((numbered, torch.arange(40) % 4), (numbered + 100, torch.arange(40) % 4))
    cut = Cut(validation=0.25, train_samples=24)
    for task in permuted(data, tasks=2, cut=cut).tasks:
        train, held = (set(part.inputs.flatten().tolist()) for part in (task.train, task.validation))
        assert (len(train), len(held)) == (18, 6)
        assert not train & held
        assert max(train | held) < 100
        assert set(task.test.inputs.flatten().tolist()) == set(range(100, 140))
        for part in (task.train, task.validation):
            assert torch.equal(part.targets, part.inputs.flatten().long() % 4)
    first, again = (permuted(data, tasks=1, cut=cut).tasks[0] for _ in range(2))
    assert torch.equal(first.validation.inputs, again.validation.inputs)


def test_standardize_takes_its_statistics_from_the_training_samples_of_the_first_task() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 3, generator=generator) * torch.tensor([1.0, 5.0, 0.0]) + torch.tensor([0.0, 9.0, 2.0])
    data = from_tensors((inputs, torch.arange(60) % 4), (inputs + 1, torch.arange(60) % 4))
    stream = split(data, tasks=2, cut=Cut(standardize=True))
    mine = inputs[torch.arange(60) % 4 < 2]
    ready = [task.train.ready(CPU) for task in stream.tasks]
    first, _ = ready[0].batch(torch.arange(len(ready[0])))
    expected = (mine - mine.mean(0)) / mine.std(0).clamp_min(1e-6)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)
    assert stream.tasks[1].test.mean is not None
    assert torch.equal(stream.tasks[1].test.mean, stream.tasks[0].train.mean)
    tokens = from_tensors(
        (torch.zeros(4, 3, dtype=torch.int64), torch.arange(4) % 2),
        (torch.zeros(2, 3, dtype=torch.int64), torch.arange(2)),
    )
    with pytest.raises(InputError, match="these inputs are tokens"):
        permuted(tokens, tasks=1, cut=Cut(standardize=True))


def numbered(classes: int = 6, each: int = 40) -> Dataset:
    """Samples that are their own number, so that each can be followed."""
    targets = torch.arange(classes * each) % classes
    inputs = torch.arange(float(classes * each)).unsqueeze(1)
    return from_tensors((inputs, targets), (inputs[: 2 * classes] + 1000, targets[: 2 * classes]))


@pytest.mark.parametrize("blur", [0.0, 0.1, 0.5, 1.0])
def test_blurry_spreads_a_share_of_each_class_evenly_over_the_other_tasks(blur: float) -> None:
    data = numbered()
    stream = blurry(data, tasks=3, blur=blur)
    assert stream.scenario is Scenario.CLASS
    assert not stream.boundaries
    counts = torch.stack([task.train.targets.bincount(minlength=6) for task in stream.tasks])
    away = round(blur * 40)
    for label in range(6):
        home = label // 2
        assert int(counts[home, label]) == 40 - away
        others = [int(counts[task, label]) for task in range(3) if task != home]
        assert sum(others) == away
        assert max(others) - min(others) <= 1
    # Nothing is lost, doubled or given another label.
    inputs = torch.cat([task.train.inputs for task in stream.tasks]).flatten()
    targets = torch.cat([task.train.targets for task in stream.tasks])
    assert sorted(inputs.tolist()) == data.train.inputs.flatten().tolist()
    assert torch.equal(targets, inputs.long() % 6)


def test_blurry_keeps_validation_and_tests_of_the_main_classes() -> None:
    cut = Cut(validation=0.25, standardize=True)
    stream, sharp = blurry(numbered(), tasks=3, blur=0.5, cut=cut), split(numbered(), tasks=3, cut=cut)
    assert sharp.boundaries
    for task, other in zip(stream.tasks, sharp.tasks, strict=True):
        assert task.classes == other.classes
        for part, same in ((task.validation, other.validation), (task.test, other.test)):
            assert torch.equal(part.inputs, same.inputs)
            assert set(part.targets.tolist()) == set(task.classes)
        assert task.train.mean is not None
        assert torch.equal(task.train.mean, other.train.mean)
    train, held = (
        torch.cat([getattr(task, part).inputs for task in stream.tasks]).flatten().tolist()
        for part in ("train", "validation")
    )
    assert not set(train) & set(held)
    assert len(train) + len(held) == 240


def test_the_samples_that_leave_are_the_seeds() -> None:
    first, again, other = (blurry(numbered(), tasks=3, blur=0.3, seed=seed) for seed in (1, 1, 2))
    trains = [[task.train.inputs for task in stream.tasks] for stream in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(trains[0], trains[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(trains[0], trains[2], strict=True))


def test_blurry_refuses_what_it_cannot_spread() -> None:
    with pytest.raises(InputError, match="at least 2, not tasks = 1"):
        blurry(numbered(), tasks=1)
    with pytest.raises(InputError, match="must be a share, 0 to 1"):
        blurry(numbered(), blur=1.5)


def test_cropping_shifts_and_flipping_mirrors_each_image_on_its_own() -> None:
    images = torch.arange(1, 1 + 2 * 4 * 5, dtype=torch.uint8).view(1, 2, 4, 5).expand(400, -1, -1, -1)
    torch.manual_seed(0)
    found = Augment(flip=True, crop=2)(images)
    assert found.dtype == torch.uint8
    assert found.shape == images.shape
    padded = torch.nn.functional.pad(images[0], [2] * 4)
    windows = [
        window
        for top in range(5)
        for left in range(5)
        for plain in [padded[:, top : top + 4, left : left + 5]]
        for window in [plain]
    ]
    mirrored = [each.flip(2) for each in windows]
    counts = [sum(torch.equal(image, each) for image in found) for each in (*windows, *mirrored)]
    # Each of the 50 outcomes 8 times, on average; a window that is its own mirror image there is none.
    assert sum(counts) == 400
    assert min(counts) >= 1
    assert 150 < sum(counts[:25]) < 250


def test_without_anything_to_do_augmentation_leaves_images_alone() -> None:
    images = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(Augment()(images), images)


def test_a_scenario_may_be_its_name() -> None:
    inputs, targets = torch.rand(40, 3), torch.arange(40) % 4
    data = from_tensors((inputs, targets), (inputs, targets))
    named: Any = "task"
    assert split(data, tasks=2, scenario=named).scenario is Scenario.TASK
    wrong: Any = "tsk"
    with pytest.raises(InputError, match="unknown scenario 'tsk', did you mean 'task'"):
        split(data, tasks=2, scenario=wrong)
