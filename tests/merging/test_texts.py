"""Statistics of a text classifier in a Hugging Face folder, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import tokenizer
from torch import Tensor

from lifelong.cli import main
from lifelong.merging import texts

WORDS = ["a", "good", "bad", "book", "film", "pen", "was", "is"]
TEXTS = ["a good book", "the film was bad", "a pen is a pen", "good", "bad bad bad book", "a good bad film"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small classifiers, one and two, and a table of texts."""
    config = transformers.BertConfig(
        vocab_size=4 + len(WORDS),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        num_labels=3,
    )
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / name)
        tokenizer(tmp_path / name, WORDS)
    pandas.DataFrame({"text": TEXTS, "label": range(6)}).to_csv(tmp_path / "texts.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network(path: Path) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()


def one_by_one(path: Path) -> list[Tensor]:
    own = transformers.AutoTokenizer.from_pretrained(path)
    return [own(text, return_tensors="pt")["input_ids"] for text in TEXTS]


def slow_fisher(path: Path) -> dict[str, Tensor]:
    model = network(path)
    params = dict(model.named_parameters())
    total = {name: torch.zeros_like(each) for name, each in params.items()}
    for ids in one_by_one(path):
        logs = model(ids).logits.log_softmax(1)[0]
        for log in logs:
            found = torch.autograd.grad(log, list(params.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(params, found, strict=True):
                total[name] += log.exp().detach() * gradient.square() / len(TEXTS)
    return total


def slow_gram(path: Path) -> dict[str, Tensor]:
    model = network(path)
    seen: dict[str, list[Tensor]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(
                lambda _, args, name=name: seen.setdefault(f"{name}.weight", []).append(args[0].flatten(0, -2))
            )
    with torch.no_grad():
        for ids in one_by_one(path):
            model(ids)
    rows = {name: torch.cat(every) for name, every in seen.items()}
    return {name: each.T @ each / len(each) for name, each in rows.items()}


@pytest.mark.parametrize(("rule", "kind", "slow"), [("fisher", "fisher", slow_fisher), ("regmean", "gram", slow_gram)])
def test_a_merge_by_statistics_from_the_command_line(
    rule: str,
    kind: str,
    slow: Callable[[Path], dict[str, Tensor]],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("one", "two"):
        assert main(["merge", "statistics", name, "--rule", rule, "--data", "texts.csv", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["samples"] == len(TEXTS)
        found, expected = load_file(said["out"]), slow(folder / name)
        assert said["out"] == f"{name}/statistics/{kind}.safetensors"
        assert set(found) == set(expected)
        for key, each in found.items():
            torch.testing.assert_close(each, expected[key], rtol=1e-3, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")
    assert main(["merge", "--rule", rule, "one", "two", "--out", "merged"]) == 0
    assert network(folder / "merged").config.num_labels == 3


def test_what_is_drawn_from_a_table(folder: Path) -> None:
    table = folder / "texts.csv"
    assert sorted(texts.read(table, None, 100)) == sorted(TEXTS)
    drawn = texts.read(table, "text", 3)
    assert len(drawn) == 3
    assert set(drawn) < set(TEXTS)
    assert drawn == texts.read(table, "text", 3)
    assert any(drawn != texts.read(table, "text", 3, seed) for seed in range(1, 9))
    # A data set in the hub's layout: of its training split.
    (folder / "set").mkdir()
    frame = pandas.read_csv(table)
    frame[:4].to_parquet(folder / "set" / "train-00000-of-00001.parquet")
    frame[4:].to_parquet(folder / "set" / "test-00000-of-00001.parquet")
    assert sorted(texts.read(folder / "set", "text", 100)) == sorted(TEXTS[:4])


def test_texts_are_batched_by_length_and_cut(folder: Path) -> None:
    batches = texts.tokens(folder / "one", TEXTS * 20, 5)
    assert sorted({each.shape[1] for each in batches}) == [3, 5]
    assert sum(len(each) for each in batches) == 120
    assert max(len(each) for each in batches) == 32


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["merge", "statistics", *words]) == 2
    return capsys.readouterr().err


def test_what_has_no_statistics_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fisher = ["one", "--rule", "fisher", "--data", "texts.csv"]
    assert "takes one model, --rule and --data" in refused(capsys, "one", "--rule", "fisher")
    assert "rule linear needs no statistics; fisher and regmean do" in refused(
        capsys, "one", "--rule", "linear", "--data", "texts.csv"
    )
    assert "did you mean 'text'?" in refused(capsys, *fisher, "--column", "texts")
    assert "column 'label' holds no text, but 'text' does" in refused(capsys, *fisher, "--column", "label")
    numbers = pandas.DataFrame({"a": [1, 2], "label": [0, 1]})
    numbers.to_csv("numbers.csv", index=False)
    assert "numbers.csv has no column of texts" in refused(capsys, "one", "--rule", "fisher", "--data", "numbers.csv")
    numbers.assign(text=["good", None]).to_csv("holes.csv", index=False)
    assert "holes.csv, row 1: column 'text' holds nan" in refused(
        capsys, "one", "--rule", "fisher", "--data", "holes.csv"
    )
    assert "none.csv is no table" in refused(capsys, "one", "--rule", "fisher", "--data", "none.csv")
    weights = load_file(folder / "one" / "model.safetensors")
    save_file({name: each for name, each in weights.items() if "classifier" not in name}, "one/model.safetensors")
    said = refused(capsys, *fisher)
    assert "lacks weights of BertForSequenceClassification (2): classifier.bias, classifier.weight" in said
    config = json.loads((folder / "one" / "config.json").read_text())
    (folder / "one" / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    assert "one holds BertModel by its config.json" in refused(capsys, *fisher)
    other = json.loads((folder / "two" / "tokenizer.json").read_text())
    other["model"]["vocab"]["good"] = 99
    (folder / "two" / "tokenizer.json").write_text(json.dumps(other))
    said = refused(capsys, "two", "--rule", "fisher", "--data", "texts.csv")
    assert "two: its tokenizer has a token 99, and the model knows 12" in said
    for each in (folder / "two").glob("token*"):
        each.unlink()
    assert "two has no tokenizer" in refused(capsys, "two", "--rule", "fisher", "--data", "texts.csv")
    assert not (folder / "one" / "statistics").exists()
