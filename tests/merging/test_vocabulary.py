"""Models of different vocabularies, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from merging.models import read, tensors, write

from lifelong.errors import InputError
from lifelong.merging import engine, planning
from lifelong.merging.recipe import parsed

EMBEDDING = "model.embed_tokens.weight"
# The tokens of each model, by row; the third has two rows without a token.
TOKENS = {"base": ["a", "b", "c"], "one": ["b", "a", "x"], "two": ["c", "x", "b", "y"]}
SIZES = {"base": 3, "one": 3, "two": 6}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, (name, tokens) in enumerate(TOKENS.items()):
        folder = write(tmp_path / name, tensors(seed, dtype="F32", rows=SIZES[name]), vocab_size=SIZES[name])
        vocabulary = {token: row for row, token in enumerate(tokens[:-1])}
        added = [{"id": len(tokens) - 1, "content": tokens[-1]}]
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))
    return tmp_path


def merged(models: Path, **more: Any) -> tuple[np.ndarray[Any, Any], list[str | None]]:
    """The merged embedding, and the token of each row."""
    values = {
        "merge_method": "linear",
        "base_model": "base",
        "models": [
            {"model": name, "parameters": {"weight": weight}} for name, weight in zip(TOKENS, (1, 2, 4), strict=True)
        ],
        "parameters": {"normalize": False},
        **more,
    }
    out = models / "out"
    list(engine.merge(planning.plan(parsed(values), models), out, shard_bytes=10**9))
    described = json.loads((out / "tokenizer.json").read_text())
    rows = read(out)[EMBEDDING]
    tokens: list[str | None] = [None] * len(rows)
    for token, row in described["model"]["vocab"].items():
        tokens[row] = token
    for each in described["added_tokens"]:
        tokens[each["id"]] = each["content"]
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(rows)
    return rows, tokens


def row(models: Path, name: str, token: str) -> np.ndarray[Any, Any]:
    return read(models / name)[EMBEDDING][TOKENS[name].index(token)].astype(float)


def expected(models: Path, token: str) -> np.ndarray[Any, Any]:
    """The sum of every model's embedding of a token: its own, the base's, or the mean of those that have it."""
    having = [name for name in TOKENS if token in TOKENS[name]]
    donors = ["base"] if "base" in having else having
    default = np.mean([row(models, name, token) for name in donors], axis=0)
    return sum(
        weight * (row(models, name, token) if name in having else default)
        for name, weight in zip(TOKENS, (1, 2, 4), strict=True)
    )


@pytest.mark.parametrize(
    ("source", "tokens"),
    [("base", ["a", "b", "c"]), ("two", ["c", "x", "b", "y"]), ("union", ["a", "b", "c", "x", "y"])],
)
def test_every_token_gets_the_embeddings_of_that_token(source: str, tokens: list[str], models: Path) -> None:
    rows, found = merged(models, tokenizer_source=source)
    assert found == tokens
    for token, each in zip(tokens, rows, strict=True):
        np.testing.assert_allclose(each, expected(models, token), rtol=1e-5)


def test_the_head_is_aligned_too_and_other_tensors_are_not(models: Path) -> None:
    merged(models, tokenizer_source="union")
    out = read(models / "out")
    assert out["lm_head.weight"].shape == (5, 24)
    name = "model.layers.0.norm.weight"
    total = sum(weight * read(models / each)[name] for each, weight in zip(TOKENS, (1, 2, 4), strict=True))
    np.testing.assert_allclose(out[name], total, rtol=1e-5)


def test_rows_without_a_token_are_the_mean_of_the_others(models: Path) -> None:
    rows, tokens = merged(models, tokenizer={"source": "union", "pad_to_multiple_of": 4})
    assert tokens[5:] == [None] * 3
    for each in rows[5:]:
        np.testing.assert_allclose(each, rows[:5].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_a_recipe_says_where_tokens_come_from(models: Path) -> None:
    told = {
        "x": {"source": "two"},
        "new": {"source": {"kind": "model_token", "model": "one", "token": "a"}},
        "b": {"source": {"kind": "zero"}, "force": True},
        "c": {"source": {"kind": "model_token", "model": "two", "token_id": 3}},
    }
    rows, tokens = merged(models, tokenizer={"source": "base", "tokens": told})
    assert tokens == ["a", "b", "c", "x", "new"]
    np.testing.assert_allclose(rows[3], (1 + 4) * row(models, "two", "x") + 2 * row(models, "one", "x"), rtol=1e-5)
    np.testing.assert_allclose(rows[4], 7 * row(models, "one", "a"), rtol=1e-5)
    np.testing.assert_array_equal(rows[1], 0)
    whole = row(models, "base", "c") + 2 * row(models, "two", "y") + 4 * row(models, "two", "c")
    np.testing.assert_allclose(rows[2], whole, rtol=1e-5)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, "several shapes"),
        ({"tokenizer_source": "basis"}, "none of the models, did you mean 'base'?"),
        ({"tokenizer": {"tokens": {"x": {"source": "three"}}}}, "which is none of the models"),
        ({"tokenizer": {"tokens": {"x": {"source": "base"}}}}, "base has no token 'x'"),
        ({"tokenizer": {"tokens": {"x": 3}}}, "must have a source"),
        ({"tokenizer": {"pad_to_multiple_of": 0}}, "pad_to_multiple_of"),
        ({"tokenizer_source": "base", "tokenizer": {}}, "either tokenizer or tokenizer_source"),
        ({"tokenizer_source": "base", "chat_template": "chatml"}, "must be a template or auto"),
    ],
)
def test_what_cannot_be_aligned_is_refused(more: dict[str, Any], says: str, models: Path) -> None:
    with pytest.raises(InputError) as caught:
        merged(models, **more)
    assert says in str(caught.value)


def test_a_model_without_a_tokenizer_is_refused(models: Path) -> None:
    (models / "one" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"one/tokenizer\.json"):
        merged(models, tokenizer_source="union")
    (models / "one" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"one has no tokenizer\.json"):
        merged(models, tokenizer_source="union")


def test_the_most_common_chat_template_is_taken(models: Path) -> None:
    for name, text in {"base": "{{ a }}", "one": "{{ b }}", "two": "{{ b }}"}.items():
        (models / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": text}))
    merged(models, tokenizer_source="union", chat_template="auto")
    assert (models / "out" / "chat_template.jinja").read_text() == "{{ b }}"
