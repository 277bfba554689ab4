"""Every source of data, the cache, and what each says of wrong input."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("setting", [{"image_size": 4}, {"target": "digit"}])
def test_settings_that_mean_nothing_here_are_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{next(iter(setting))} .* digits"):
        load("digits", **setting)
    if "image_size" in setting:
        (tmp_path / "table.csv").write_text("a,label\n1,0\n2,1\n3,0\n4,1\n")
        with pytest.raises(InputError, match=r"image_size .*table\.csv"):
            load(str(tmp_path / "table.csv"), **setting)


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


def test_pictures_in_folders_have_no_target(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "one.png")
    with pytest.raises(InputError, match=r"target = 'price:number' means nothing .* labelled by their folders"):
        load(str(tmp_path), target="price:number")


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


def test_rows_are_counted_whatever_a_table_calls_them(tmp_path: Path) -> None:
    table = pandas.DataFrame({"a": ["1", "2", "oops", "4"], "kind": ["x", "y", "x", "y"]}, index=list("pqrs"))
    table.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows.parquet, row 3: column 'a' holds 'oops' among numbers"):
        load(str(tmp_path / "rows.parquet"), target="kind")


@pytest.mark.parametrize(
    ("change", "target", "says"),
    [
        ({"note": ["good"] * 4}, "kind", "column 'note' holds text"),
        ({"a": [1.0, 2.0, "twelve", 3.0]}, "kind", "rows.csv, row 3: column 'a' holds 'twelve' among numbers"),
        ({"a": [1.0, None, 2.0, 3.0]}, "kind", "column 'a' lacks 1 of its 4 values, first in row 2"),
        ({"a": [1.0, 2.0, 3.0, float("inf")]}, "kind", "rows.csv, row 4: column 'a' holds inf, which float32 cannot"),
        ({"a": [1.0, 1e300, 3.0, 4.0]}, "kind", "rows.csv, row 2: column 'a' holds 1e+300, which float32 cannot"),
        ({}, "kidn", "did you mean 'kind'?"),
        ({"kind": [0.25, 1.0, 2.0, 3.0]}, "kind", "label column 'kind' holds fractions such as 0.25"),
        ({}, None, "no label column"),
    ],
)
def test_wrong_tables(tmp_path: Path, change: dict[str, list[object]], target: str | None, says: str) -> None:
    table = pandas.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "kind": ["x", "y", "x", "y"], **change})
    table.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(InputError) as error:
        load(str(tmp_path / "rows.csv"), target=target)
    assert says in str(error.value)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b,label\n")
    with pytest.raises(InputError, match=r"rows\.csv has no rows$"):
        load(str(tmp_path / "rows.csv"))


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


def test_some_classes_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, some = load("digits"), load("digits:3-5")
    assert (some.name, some.classes) == ("digits:3-5", ("3", "4", "5"))
    for part, kept in ((whole.train, some.train), (whole.test, some.test)):
        chosen = (part.targets >= 3) & (part.targets <= 5)
        assert torch.equal(kept.inputs, part.inputs[chosen])
        assert torch.equal(kept.targets + 3, part.targets[chosen])
    assert some.fingerprint != load("digits:3-4").fingerprint
    for wrong in ("digits:5-3", "digits:9-10"):
        with pytest.raises(InputError, match="its 10 classes are numbered 0 to 9"):
            load(wrong)
    with pytest.raises(InputError, match="unknown data 'digitz'"):
        load("digitz:0-1")
    layout(tmp_path / "mine:0-1")
    monkeypatch.chdir(tmp_path)
    assert load("mine:0-1").name == "mine:0-1"  # a folder of that name


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


def test_arrays_are_taken_as_tensors_are() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.rand(6, 2), torch.arange(6) % 2
    ours = from_tensors((inputs, targets), (inputs, targets))
    arrays: Any = (inputs.numpy(), targets.numpy())
    theirs = from_tensors(arrays, arrays)
    assert torch.equal(theirs.train.inputs, inputs)
    assert theirs.fingerprint == ours.fingerprint
    wrong: Any = (np.array(["a", "b"]), targets)
    with pytest.raises(InputError, match="train samples are no tensors, nor arrays of numbers"):
        from_tensors(wrong, wrong)


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


def build_slowly(folder: str, barrier: Barrier, results: Queue[tuple[int, int]]) -> None:
    os.environ["LIFELONG_CACHE"] = folder
    built = []

    def build() -> Dataset:
        built.append(1)
        time.sleep(0.3)
        return made()

    barrier.wait(60)
    results.put((len(disk.cached("key", build).train.targets), len(built)))


def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (str(tmp_path / "both"), barrier, results)
    processes = [context.Process(target=build_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(results.get(timeout=10) for _ in processes) == [(3, 0), (3, 1)]
    assert sorted(each.name for each in (tmp_path / "both" / "data").glob("key.[js]*")) == [
        "key.json",
        "key.safetensors",
    ]


def test_folders_name_what_does_not_fit(tmp_path: Path) -> None:
    pictures(tmp_path / "a" / "train", {"cat": 3})
    pictures(tmp_path / "a" / "val", {"cat": 2, "dgo": 1})
    with pytest.raises(InputError, match="dgo is a class that"):
        load(str(tmp_path / "a"))
    pictures(tmp_path / "b", {"cat": 3, "empty": 0})
    with pytest.raises(InputError, match="class empty has no training samples"):
        load(str(tmp_path / "b"))
    pictures(tmp_path / "c" / "train", {"cat": 10, "dog": 10})
    alone = load(str(tmp_path / "c"))
    assert (len(alone.train.targets), len(alone.test.targets)) == (16, 4)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="is no data set"):
        load(str(tmp_path / "nothing"))


def test_grey_and_coloured_pictures_become_coloured(tmp_path: Path) -> None:
    pictures(tmp_path / "a", {"cat": 5, "dog": 5})
    Image.new("RGBA", (6, 5), (200, 100, 50, 255)).save(tmp_path / "a" / "dog" / "0.png")
    data = load(str(tmp_path / "a"))
    assert data.train.inputs.shape[1:] == (3, 5, 6)
    whole = torch.cat([data.train.inputs, data.test.inputs])[:, :, 0, 0].tolist()
    assert [200, 100, 50] in whole


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    pictures(tmp_path / "a", {"cat": 3, "dog": 3}, size=(40, 40))
    file = tmp_path / "a" / "dog" / "1.png"
    whole = file.read_bytes()
    chunk = whole.index(b"IDAT")
    for damaged in (whole[: len(whole) // 2], b"", b"GIF89a", whole[:chunk] + b"\x80\x01\x02\x03" + whole[chunk + 4 :]):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"picture .*dog/1\.png cannot be decoded"):
            load(str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"a": 1, "label": 1}, {"a": 2, "label": "x"}], "must be all numbers or all text"),
        ([{"a": 1, "label": [1]}, {"a": 2, "label": [2]}], "must be all numbers or all text"),
        ([{"label": 1}, {"label": 0}], "nothing to learn from"),
        ([{"a": 1, "label": "x"}, {"a": 2, "label": None}], "column 'label' lacks 1 of its 2 values"),
        ([{"a": [1], "label": 1}, {"a": [2], "label": 0}], "column 'a' holds text"),
        ([], "has no rows"),
    ],
)
def test_wrong_rows(rows: list[dict[str, object]], says: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(InputError) as error:
        load(str(tmp_path / "rows.jsonl"))
    assert says in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"PAR1", b'"'])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_table_of_rubbish_is_an_input_error(content: bytes, ending: str, tmp_path: Path) -> None:
    (tmp_path / f"rows.{ending}").write_bytes(content)
    with pytest.raises(InputError, match="rows"):
        load(str(tmp_path / f"rows.{ending}"))


def test_a_test_table_that_lacks_a_column(tmp_path: Path) -> None:
    table = pandas.DataFrame({"a": [1.0, 2.0], "b": [1.0, 2.0], "label": [3, 7]})
    table.to_csv(tmp_path / "train.csv", index=False)
    table.drop(columns="b").to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(InputError, match=r"test\.csv has no column 'b'"):
        load(str(tmp_path))
    table[["label", "b", "a"]].to_csv(tmp_path / "test.csv", index=False)
    data = load(str(tmp_path))
    assert data.classes == ("3", "7")
    assert torch.equal(data.test.inputs, data.train.inputs)
    assert torch.equal(data.test.targets, data.train.targets)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("label", None, "column 'label' lacks 1 of its 4"),
        ("image", None, r"train\[1\]: column 'image' holds no picture"),
        ("image", {"bytes": None, "path": None}, r"train\[1\]: column 'image' holds no picture"),
        ("image", {"bytes": b"rubbish", "path": None}, r"train\[1\] cannot be decoded"),
    ],
)
def test_a_damaged_row_of_the_hubs_layout(column: str, value: object, says: str, tmp_path: Path) -> None:
    layout(tmp_path / "mine", train=4)
    file = tmp_path / "mine" / "train-00000-of-00001.parquet"
    rows = pandas.read_parquet(file).to_dict("records")
    rows[1][column] = value
    pandas.DataFrame(rows).astype({"label": "Int64"}).to_parquet(file)
    with pytest.raises(InputError, match=says):
        load(str(tmp_path / "mine"))


def test_the_hubs_layout_without_training_or_pictures(tmp_path: Path) -> None:
    layout(tmp_path / "a")
    (tmp_path / "a" / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(InputError, match="no split named train, there are test"):
        load(str(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    pandas.DataFrame({"text": ["x", "y"], "label": [0, 1]}).to_parquet(tmp_path / "b" / "train-0.parquet")
    with pytest.raises(InputError, match="data b holds text in column 'text': it takes a tokenizer"):
        load(str(tmp_path / "b"))


def test_the_hubs_layout_in_several_files_and_without_test(tmp_path: Path) -> None:
    layout(tmp_path / "mine", train=10)
    (tmp_path / "mine" / "test-00000-of-00001.parquet").unlink()
    whole = pandas.read_parquet(tmp_path / "mine" / "train-00000-of-00001.parquet")
    for index in range(2):
        whole[5 * index : 5 * index + 5].to_parquet(tmp_path / "mine" / f"train-0000{index}-of-00002.parquet")
    (tmp_path / "mine" / "train-00000-of-00001.parquet").unlink()
    data = load(str(tmp_path / "mine"))
    assert (len(data.train.targets), len(data.test.targets)) == (8, 2)
    both = torch.cat([data.train.inputs, data.test.inputs])[:, 0, 0, 0].sort().values
    assert both.tolist() == list(range(0, 100, 10))


def test_without_a_network_the_answer_comes_soon_and_in_one_line(tmp_path: Path) -> None:
    # A port that nobody listens on: both of the hub's libraries would ask again and again.
    surroundings = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    (tmp_path / "data" / "nobody" / "anything").mkdir(parents=True)
    surroundings["LIFELONG_DATA"] = str(tmp_path / "data")
    words = ["run", "--data", "nobody/nothing", "--out", str(tmp_path / "out")]
    begun = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "lifelong", *words],
        capture_output=True,
        env=surroundings,
        text=True,
        timeout=60,
        check=False,
    )
    assert time.monotonic() - begun < 20
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "no local copy" in ended.stderr
    assert "data 'nobody/nothing', did you mean 'nobody/anything'?" in ended.stderr


@pytest.mark.parametrize("kind", ["pictures", "layout"])
def test_a_second_load_decodes_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "pictures":
        pictures(tmp_path / "mine", {"cat": 5, "dog": 5})
    else:
        layout(tmp_path / "mine")
    first = load(str(tmp_path / "mine"))

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patched:
        patched.setattr("lifelong.data.folders.decode", refuse)
        patched.setattr("lifelong.data.hub.decode", refuse)
        again = load(str(tmp_path / "mine"))
        with pytest.raises(AssertionError, match="decoded again"):
            load(str(tmp_path / "mine"), image_size=3)
    assert (again.name, again.classes, again.fingerprint) == (first.name, first.classes, first.fingerprint)
    for ours, theirs in zip((*again.train, *again.test), (*first.train, *first.test), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_changed_pictures_are_decoded_again(tmp_path: Path) -> None:
    pictures(tmp_path / "mine", {"cat": 5, "dog": 5})
    load(str(tmp_path / "mine"))
    Image.new("L", (6, 5), 255).save(tmp_path / "mine" / "cat" / "9.png")
    assert len(load(str(tmp_path / "mine")).train.targets) == 9


@pytest.mark.parametrize("ending", ["json", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"rubbish", b"{}", b"3", b'{"format": 0}', b'{"format": 1, "bytes": 0}'])
def test_a_damaged_cache_costs_one_warning(ending: str, content: bytes, tmp_path: Path) -> None:
    first = disk.cached("key", made)
    (tmp_path / "cache" / "data" / f"key.{ending}").write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = disk.cached("key", made)
    assert [str(each.message).partition(" is damaged")[1] for each in caught] == [" is damaged"]
    assert torch.equal(again.train.inputs, first.train.inputs)


def test_a_full_disk_costs_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "save_file", full)
    with pytest.warns(UserWarning, match="not kept.*No space left"):
        assert disk.cached("key", made).classes == ("0", "1", "2")
    assert [each.name for each in (tmp_path / "cache" / "data").iterdir() if each.suffix != ".lock"] == []


def test_a_source_that_vanishes_is_no_fault_of_the_cache() -> None:
    def gone() -> Dataset:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "picture.png")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FileNotFoundError, match=r"picture\.png"):
            disk.cached("key", gone)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write: /proc")
def test_a_cache_in_a_folder_that_cannot_be_made_costs_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFELONG_CACHE", "/proc/nowhere")
    with pytest.warns(UserWarning, match="not kept"):
        assert disk.cached("key", made).classes == ("0", "1", "2")


def test_mnist_is_mnist() -> None:
    if REAL is None or not (Path(REAL) / "mnist").is_dir():
        pytest.skip("no local copy of MNIST: LIFELONG_DATA names no folder that has one")
    data = load(str(Path(REAL) / "mnist"))
    assert data.train.inputs.shape == (60000, 1, 28, 28)
    assert torch.bincount(data.test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
