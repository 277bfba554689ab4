"""Every source of data, the cache, and what each says of wrong input."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from lifelong.data import Dataset, from_tensors, load
from lifelong.data import cache as disk
from lifelong.errors import InputError

REAL = os.environ.get("LIFELONG_DATA")


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIFELONG_DATA", raising=False)


def pictures(root: Path, counts: dict[str, int], size: tuple[int, int] = (6, 5)) -> None:
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((size[1], size[0]), 40 * label + index, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")


def layout(path: Path, train: int = 6, test: int = 4) -> None:
    """A data set as the hub lays it out, with pictures as bytes."""
    path.mkdir(parents=True)
    for part, count in (("train", train), ("test", test)):
        rows = []
        for index in range(count):
            file = path / "one.png"
            Image.fromarray(np.full((4, 4), 10 * index, dtype=np.uint8)).save(file)
            rows.append({"image": {"bytes": file.read_bytes(), "path": None}, "label": index % 2})
            file.unlink()
        pandas.DataFrame(rows).to_parquet(path / f"{part}-00000-of-00001.parquet")


def test_digits_are_divided_by_class() -> None:
    digits = load("digits")
    assert digits.train.inputs.shape[1:] == (1, 8, 8)
    assert digits.train.inputs.dtype == torch.uint8
    assert int(digits.train.inputs.max()) == 255
    assert len(digits.train.targets) + len(digits.test.targets) == 1797
    shares = torch.bincount(digits.test.targets) / torch.bincount(digits.train.targets)
    assert bool(((shares - 0.25).abs() < 0.02).all())
    assert load("digits").fingerprint == digits.fingerprint


def test_folders_of_pictures(tmp_path: Path) -> None:
    pictures(tmp_path / "a" / "train", {"cat": 3, "dog": 4})
    pictures(tmp_path / "a" / "test", {"cat": 2, "dog": 1})
    data = load(str(tmp_path / "a"))
    assert data.classes == ("cat", "dog")
    assert data.train.inputs.shape == (7, 1, 5, 6)
    assert data.train.targets.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert data.train.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 40, 41, 42, 43]
    pictures(tmp_path / "b", {"cat": 5, "dog": 5})
    alone = load(str(tmp_path / "b"))
    assert (len(alone.train.targets), len(alone.test.targets)) == (8, 2)


def test_pictures_of_unlike_size_need_image_size(tmp_path: Path) -> None:
    pictures(tmp_path / "a", {"cat": 3})
    pictures(tmp_path / "a2", {"dog": 3}, size=(9, 9))
    os.rename(tmp_path / "a2" / "dog", tmp_path / "a" / "dog")
    with pytest.raises(InputError, match="set image_size"):
        load(str(tmp_path / "a"))
    assert load(str(tmp_path / "a"), image_size=4).train.inputs.shape[1:] == (1, 4, 4)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_tables(tmp_path: Path, ending: str) -> None:
    table = pandas.DataFrame({"a": np.arange(20.0), "b": range(20), "kind": ["x", "y"] * 10})
    path = tmp_path / f"rows.{ending}"
    if ending == "csv":
        table.to_csv(path, index=False)
    elif ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    data = load(str(path), target="kind")
    assert data.classes == ("x", "y")
    assert data.train.inputs.dtype == torch.float32
    assert len(data.train.targets) == 16
    both = torch.cat([data.train.inputs, data.test.inputs])[:, 1].sort().values
    assert both.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("change", "target", "says"),
    [
        ({"note": ["good"] * 4}, "kind", "column 'note' holds text"),
        ({"a": [1.0, None, 2.0, 3.0]}, "kind", "column 'a' lacks 1 of its 4 values"),
        ({}, "kidn", "did you mean 'kind'?"),
        ({}, None, "no label column"),
    ],
)
def test_wrong_tables(tmp_path: Path, change: dict[str, list[object]], target: str | None, says: str) -> None:
    table = pandas.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "kind": ["x", "y", "x", "y"], **change})
    table.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(InputError) as error:
        load(str(tmp_path / "rows.csv"), target=target)
    assert says in str(error.value)


def test_a_label_that_training_lacks(tmp_path: Path) -> None:
    pandas.DataFrame({"a": [1.0, 2.0], "label": ["x", "y"]}).to_csv(tmp_path / "train.csv", index=False)
    pandas.DataFrame({"a": [1.0], "label": ["z"]}).to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(InputError, match="outside 0 to 1"):
        load(str(tmp_path))


def test_the_hubs_layout_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout(tmp_path / "data" / "mnist")
    by_path = load(str(tmp_path / "data" / "mnist"))
    assert by_path.train.inputs[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert by_path.test.targets.tolist() == [0, 1, 0, 1]
    monkeypatch.setenv("LIFELONG_DATA", str(tmp_path / "data"))
    assert torch.equal(load("mnist").train.inputs, by_path.train.inputs)
    assert torch.equal(load("ylecun/mnist").train.inputs, by_path.train.inputs)
    with pytest.raises(InputError, match="did you mean 'label'"):
        load("mnist", target="lable")


def test_a_truncated_source_is_named(tmp_path: Path) -> None:
    layout(tmp_path / "mine")
    file = tmp_path / "mine" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read"):
        load(str(tmp_path / "mine"))


def test_neither_local_nor_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub\nand a second line")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError) as error:
        load("mnist")
    assert "LIFELONG_DATA is not set" in str(error.value)
    assert "no route to the hub" in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="did you mean 'digits'"):
        load("digit")


@pytest.mark.parametrize(
    ("inputs", "targets", "says"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 1]), "one target a sample"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "has no samples"),
        (torch.zeros(2, 2), torch.tensor([0.0, 1.0]), "must be integers"),
        (torch.tensor([[0.0], [float("nan")]]), torch.tensor([0, 1]), "not finite"),
        (torch.zeros(2, 2), torch.tensor([-1, 0]), "outside 0 to 0"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), "class 1 has no training samples"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), "training samples have the shape"),
    ],
)
def test_wrong_tensors(inputs: torch.Tensor, targets: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError) as error:
        from_tensors((inputs, targets), (torch.zeros(1, 2), torch.tensor([0])))
    assert says in str(error.value)


def made() -> Dataset:
    return from_tensors((torch.eye(3), torch.arange(3)), (torch.eye(3), torch.arange(3)))


def test_the_cache_builds_once_and_mends_itself(tmp_path: Path) -> None:
    built = []

    def build() -> Dataset:
        built.append(1)
        return made()

    first = disk.cached("key", build)
    assert torch.equal(disk.cached("key", build).train.inputs, first.train.inputs)
    assert len(built) == 1
    file = tmp_path / "cache" / "data" / "key.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.warns(UserWarning, match="key.safetensors is damaged"):
        assert torch.equal(disk.cached("key", build).train.inputs, first.train.inputs)
    assert len(built) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        disk.cached("key", build)


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not kept"):
        assert len(disk.cached("key", made).classes) == 3


def build_slowly(folder: str, results: multiprocessing.Queue[int]) -> None:
    os.environ["LIFELONG_CACHE"] = folder
    results.put(len(disk.cached("key", made).train.targets))


def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=build_slowly, args=(str(tmp_path / "both"), results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(each.name for each in (tmp_path / "both" / "data").glob("key.[js]*")) == [
        "key.json",
        "key.safetensors",
    ]


def test_mnist_is_mnist() -> None:
    if REAL is None or not (Path(REAL) / "mnist").is_dir():
        pytest.skip("no local copy of MNIST: LIFELONG_DATA names no folder that has one")
    data = load(str(Path(REAL) / "mnist"))
    assert data.train.inputs.shape == (60000, 1, 28, 28)
    assert torch.bincount(data.test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
