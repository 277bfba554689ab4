"""The examples run as they stand, on a small budget."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str, *words: str) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](list(words))


def test_pairs_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Decoding all of CIFAR-10, and EfficientNet on a loaded machine, take longer than all the rest of these tests.
    tiny.vit(tmp_path / "model")
    for index, colour in enumerate(("red", "green", "blue", "white")):
        (tmp_path / "data" / str(index)).mkdir(parents=True)
        for side in range(8, 28):
            picture = Image.new("RGB", (32, 32))
            picture.paste(colour, (0, 0, side, side))
            picture.save(tmp_path / "data" / str(index) / f"{side}.png")
    pytest.importorskip("transformers")
    results = example(
        "cifar10_pairs", "--data", str(tmp_path / "data"), "--model", f"hf:{tmp_path}/model", "--image-size", "16"
    )
    assert [result["method"] for result in results] == ["naive", "magmax"]
    for result in results:
        assert result["accuracy"][1][0] > 0.6  # chance is a half
    assert capsys.readouterr().out.count("first pair") == 2


@pytest.mark.skipif("LIFELONG_DATA" not in os.environ, reason="LIFELONG_DATA names no folder of data sets")
def test_reviews_of_films_and_products(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    tiny.bert(tmp_path / "bert")
    result = example("reviews_merged", "--samples", "32", "--tokens", "16", "--model", f"hf:{tmp_path}/bert")
    assert result["tasks"] == ["reviews/imdb", "reviews/electronics"]
    assert result["unseen"]["tasks"] == ["reviews/MR", "reviews/books"]
    assert len(result["merging"]["expert_accuracy"]) == 2
    printed = capsys.readouterr().out
    assert printed.count("its own expert") == printed.count("never learned") == 2
