"""Tables and folders with a column of texts: tokenised once, kept, and refused where something does not fit."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from lifelong import data
from lifelong.data.features import features
from lifelong.errors import InputError


@dataclass
class Letters:
    """A tokenizer of at most four letters, which counts how often it is asked."""

    fingerprint: str = "letters"
    asked: list[int] = field(default_factory=list)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.asked.append(len(texts))
        tokens = torch.full((len(texts), 4), -1)
        for index, text in enumerate(texts):
            tokens[index, : len(text)] = torch.tensor([ord(letter) for letter in text[:4]])
        return tokens


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "cache"))


def table(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


ROWS = [{"review": word, "stars": index, "label": ("bad", "good")[index % 2]} for index, word in enumerate("abcdefgh")]


def test_a_table_of_texts_becomes_tokens(tmp_path: Path) -> None:
    (tmp_path / "pair").mkdir()
    table(tmp_path / "pair" / "train.csv", ROWS)
    table(tmp_path / "pair" / "test.csv", ROWS[:2])
    read = data.load(str(tmp_path / "pair"), tokenizer=Letters)
    assert read.classes == ("bad", "good")
    assert read.train.inputs.tolist() == [[ord(letter), -1, -1, -1] for letter in "abcdefgh"]
    assert read.train.targets.tolist() == [0, 1] * 4
    assert read.test.inputs[:, 0].tolist() == [ord("a"), ord("b")]


def test_tokens_are_kept_until_tokenizer_or_text_changes(tmp_path: Path) -> None:
    path, made = table(tmp_path / "reviews.csv", ROWS), Letters()
    for _ in range(2):
        data.load(str(path), tokenizer=lambda: made)
    assert made.asked == [8]
    other = Letters("other letters")
    data.load(str(path), tokenizer=lambda: other)
    assert other.asked == [8]
    table(path, ROWS[::-1])
    data.load(str(path), tokenizer=lambda: made)
    assert made.asked == [8, 8]


def test_a_folder_in_the_hubs_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "reviews" / "books"
    folder.mkdir(parents=True)
    rows = pd.DataFrame({"text": ["ab", "cde", "f"], "label": [1, 0, 1]})
    rows.to_parquet(folder / "train-00000-of-00001.parquet")
    rows[:2].to_parquet(folder / "test-00000-of-00001.parquet")
    monkeypatch.setenv("LIFELONG_DATA", str(tmp_path))
    read = data.load("reviews/books", tokenizer=Letters)
    assert read.name == "reviews/books"
    assert read.train.inputs.tolist() == [[97, 98, -1, -1], [99, 100, 101, -1], [102, -1, -1, -1]]
    assert read.test.targets.tolist() == [1, 0]
    with pytest.raises(InputError, match=r"data reviews/books has no column 'txt', did you mean 'text'"):
        data.load("reviews/books", text="txt", tokenizer=Letters)
    with pytest.raises(InputError, match=r"column 'label' holds no text, but 'text' does"):
        data.load("reviews/books", text="label", tokenizer=Letters)


def test_columns_that_are_missing_or_of_another_kind(tmp_path: Path) -> None:
    path = table(tmp_path / "reviews.csv", ROWS)
    with pytest.raises(InputError, match=r"reviews.csv has no column 'reviews', did you mean 'review'"):
        data.load(str(path), text="reviews", tokenizer=Letters)
    with pytest.raises(InputError, match=r"column 'stars' holds no text, but 'review' does"):
        data.load(str(path), text="stars", tokenizer=Letters)
    two = table(tmp_path / "two.csv", [{"title": "a", "summary": "b", "label": i % 2} for i in range(4)])
    with pytest.raises(InputError, match=r"text in several columns \(title, summary\): name one with text"):
        data.load(str(two), tokenizer=Letters)
    assert data.load(str(two), text="summary", tokenizer=Letters).train.inputs[0, 0] == ord("b")
    holed = table(tmp_path / "holed.csv", [*ROWS, {"review": "", "stars": 1, "label": "bad"}])
    with pytest.raises(InputError, match=r"column 'review' lacks 1 of its 9 values"):
        data.load(str(holed), tokenizer=Letters)

    def none() -> Letters:
        raise InputError("model mlp reads no text")

    with pytest.raises(InputError, match=r"reviews.csv holds text in column 'review': model mlp reads no text"):
        data.load(str(path), tokenizer=none)


def test_features_are_computed_once() -> None:
    whole, asked = data.load("digits"), []

    def extract(inputs: Tensor) -> Tensor:
        asked.append(len(inputs))
        return inputs.flatten(1).float().mean(1, keepdim=True)

    for _ in range(2):
        made = features(whole, extract, "mean")
        assert torch.equal(made.train.inputs, whole.train.inputs.flatten(1).float().mean(1, keepdim=True))
        assert torch.equal(made.test.targets, whole.test.targets)
    assert sum(asked) == len(whole.train.targets) + len(whole.test.targets)
    features(whole, extract, "another trunk")
    assert sum(asked) == 2 * (len(whole.train.targets) + len(whole.test.targets))
