"""Whole runs from pretrained networks: texts and images, all weights, adapters or heads alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call

import lifelong
from lifelong import curvature, models, randomness
from lifelong.cli import main
from lifelong.errors import InputError
from lifelong.experiments import build
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import Every, events, run
from lifelong.methods import MagMax, Merge, samples
from lifelong.models.pretrained.adapters import without_adapters
from lifelong.streams import split
from lifelong.training.loop import Step, TaskDone, train

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, and reviews of books, films and lenses that are good where they say so."""
    folder = tmp_path_factory.mktemp("root")
    tiny.bert(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tiny.vit(folder / "vit")
    tiny.clip(folder / "clip")
    fillers = ("a", "the", "was", "very")
    for thing in ("book", "film", "lens"):
        rows = [
            {"review": f"{' '.join(words)} {thing} {verdict}", "label": verdict}
            for words in itertools.product(fillers, repeat=2)
            for verdict in ("good", "bad")
        ]
        for part in ("train", "test"):
            path = folder / thing / f"{part}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def texts(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "stream": "domains",
        "data": f"{root}/book,{root}/film",
        "unseen": f"{root}/lens",
        "model": f"hf:{root}/bert",
        "model_settings": {"tokens": 8, "pooling": "mean", **changes.pop("model", {})},
        "optimizer": "adamw",
        "lr": 1e-2,
        "batch_size": 8,
        "epochs": 6,
        **changes,
    }


@pytest.mark.parametrize("learn", ["all", "lora", "head"])
def test_domains_of_texts(root: Path, learn: str) -> None:
    result = lifelong.run(**texts(root, model={"learn": learn}))
    assert result["average_accuracy"] > (0.6 if learn == "head" else 0.9)  # the trunk is random, so heads learn little
    assert result["unseen"]["tasks"] == ["lens"]
    assert result["unseen_accuracy"] == result["unseen"]["after"][0] > (0.6 if learn == "head" else 0.9)
    assert result["unseen"]["before"][0] < 0.8
    assert result["unseen_transfer"] == result["unseen"]["after"][0] - result["unseen"]["before"][0]
    # 3 layers of 4 square matrices and 2 of 16x24, at rank 8 each, and the head.
    assert learn == "all" or result["parameters"] == {"head": 34, "lora": 34 + 3 * 8 * (4 * 32 + 2 * 40)}[learn]


def test_a_head_on_kept_features_is_a_head_on_a_frozen_trunk(root: Path) -> None:
    shared = {"stream": "split", "data": "digits", "tasks": 2, "train_samples": 60, "epochs": 2, "batch_size": 16}
    kept = lifelong.run(**shared, model=f"hf:{root}/vit", model_settings={"learn": "head"})
    frozen = lifelong.run(
        **shared,
        model=f"hf:{root}/vit",
        method="feature-extraction",
        method_settings={"learn_first": False},
    )
    assert kept["accuracy"] == frozen["accuracy"]
    assert kept["parameters"] == frozen["parameters"] == 10 * 17


def test_features_are_good_for_importances_the_first_time_too(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "empty"))
    settings = {"epochs": 1, "method": "ewc", "method_settings": {"strength": 1.0}}
    first, second = (lifelong.run(**texts(root, model={"learn": "head"}, **settings)) for _ in range(2))
    assert first["accuracy"] == second["accuracy"]


def test_the_command_line_says_that_features_are_computed_and_when_they_are_not(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("lifelong.data.features._TOLD_EVERY", 0.0)
    data = ["--data", f"{root}/book,{root}/film", "--model", f"hf:{root}/bert", "--model.learn", "head"]

    def told(*words: str) -> list[str]:
        assert main([*words, *data, "--model.tokens", "8", "--threads", "1"]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "features" in line]

    of_run = told("run", "--stream", "domains", "--steps", "1", "--out", str(tmp_path / "run"))
    assert of_run[:2] == [
        "book: computing the features of 64 samples, once",
        "book: features of 32 of 32 samples",
    ]
    assert told("run", "--stream", "domains", "--steps", "1", "--out", str(tmp_path / "again")) == []
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "other"))
    few = ["--iterations", "1", "--tasks", "1", "--test-tasks", "2", "--shots", "1", "--validate-every", "0"]
    few += ["--test-data", f"{root}/lens", "--model.hidden", "4"]
    of_meta = told("meta", "train", "--algorithm", "protonet", *few, "--out", str(tmp_path / "meta"))
    assert of_meta[0] == of_run[0]


@pytest.mark.parametrize("changed", [{"pad": 2}, {"invert": True}])
def test_kept_features_are_of_the_pictures_as_the_stream_has_them(root: Path, changed: dict[str, Any]) -> None:
    shared = {"stream": "split", "data": "digits", "tasks": 1, "train_samples": 4}
    network = {"model": f"hf:{root}/vit", "model_settings": {"learn": "head"}}
    kept = [build.stream(recipe({**shared, **network, **each})).tasks[0].train for each in ({}, changed)]
    pictures = build.stream(recipe({**shared, **changed})).tasks[0].train
    trunk = models.trunk(f"hf:{root}/vit", {"learn": "head"}, tuple(pictures.inputs.shape[1:]), 0).eval()
    with torch.no_grad():
        torch.testing.assert_close(kept[1].inputs, trunk(pictures.scaled(pictures.inputs)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(kept[0].inputs, kept[1].inputs, rtol=1e-3, atol=1e-3)


def test_features_are_of_what_was_stored(root: Path) -> None:
    with pytest.raises(InputError, match="stream permuted changes what they are made of"):
        lifelong.run(data="digits", model=f"hf:{root}/vit", model_settings={"learn": "head"})


@pytest.mark.parametrize("learn", ["all", "lora", "dora", "ia3"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(root: Path, tmp_path: Path, learn: str) -> None:
    made = recipe(texts(root, epochs=2, model={"learn": learn, "layer_decay": 0.5}, schedule="cosine", method="ewc"))
    whole = run(made, tmp_path / "whole")
    steps = 0
    for event in events(made, tmp_path / "stopped", checkpoint_every=Every(1, None)):
        steps += isinstance(event, Step)
        if steps == 11:  # in the second task
            break
    again = run(made, tmp_path / "stopped", resume=True)
    assert again["accuracy"] == whole["accuracy"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


def test_importances_of_a_text_encoder_are_those_of_each_sample(root: Path) -> None:
    made = recipe(texts(root, model={"learn": "lora", "adapted": ["query", "word_embeddings"]}))
    stream = build.stream(made)
    learner = build.learner(made, stream)
    learner.model.head.grow(2)
    inputs, targets = stream.tasks[0].train.batch(torch.arange(0, 32, 5))
    found = curvature.fisher(
        learner.model, lambda x: learner.model(x, 0), [(inputs, targets)], kind="empirical", generator=None
    )
    expected: dict[str, Tensor] = {}
    learner.model.eval()
    for sample, target in zip(inputs, targets, strict=True):
        learner.model.zero_grad()
        (-learner.model(sample[None], 0).log_softmax(1)[0, target]).backward()
        for name, parameter in learner.model.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                expected[name] = expected.get(name, torch.tensor(0.0)) + parameter.grad.square() / len(inputs)
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, atol=1e-7, rtol=1e-3, msg=name)
    assert float(max(each.max() for each in expected.values())) > 1e-5


def test_a_fixed_head_stays_and_answers_before_learning(root: Path) -> None:
    shared: dict[str, Any] = {"epochs": 1, "train_samples": 50, "batch_size": 16, "lr": 1e-3}
    data = lifelong.load("digits")
    for rows, model in (("class-means", "vit"), ("class-names", "clip")):
        made = recipe(
            {
                **shared,
                "model": f"hf:{root}/{model}",
                "scenario": "class",
                "head_rows": rows,
                "stream": "split",
                "tasks": 2,
            }
        )
        stream = split(data, tasks=2)
        learner = build.learner(made, stream)
        learner.model.head.grow(5)
        learner.model.head.grow(5)
        heads = {name for name, each in learner.model.head.named_parameters() if each.requires_grad}
        assert heads == set()
        lengths = torch.cat([block.weight.norm(dim=1) for block in learner.model.head.blocks])
        torch.testing.assert_close(lengths, torch.ones(10))
    result = lifelong.run(
        **shared,
        stream="split",
        data="digits",
        scenario="task",
        tasks=2,
        model=f"hf:{root}/vit",
        head_rows="class-means",
    )
    assert result["accuracy"][0][0] > 0.3  # twice what guessing one of five gives


@pytest.mark.parametrize("method", ["feature-extraction", "ncm"])
def test_where_nothing_learns_the_network_answers_as_it_is(root: Path, method: str) -> None:
    result = lifelong.run(
        train_samples=50,
        optimizer="adamw",
        stream="split",
        data="digits",
        scenario="class",
        tasks=2,
        model=f"hf:{root}/vit",
        head_rows="class-means",
        method=method,
        method_settings={"learn_first": False},
    )
    assert result["average_accuracy"] > 0.2  # twice what guessing one of ten gives


@pytest.mark.parametrize("training", ["sequential", "independent"])
def test_adapters_of_each_task_are_merged_as_the_weights_they_change(root: Path, training: str) -> None:
    lora = {"learn": "lora", "rank": 2, "adapted": ["query", "output.dense"]}
    made = recipe(texts(root, epochs=2, model=lora, method="magmax", method_settings={"training": training}))
    stream, method = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    experts: list[dict[str, Tensor]] = []
    for event in train(learner, method, stream, build.schedule(made)):
        if isinstance(event, TaskDone):
            experts.append({name: each.detach().clone() for name, each in learner.model.named_parameters()})
    assert isinstance(method, MagMax)
    names = [name for name in method.base if name.startswith("trunk.")]
    assert len(names) == 3 * 3
    for name in names:
        first, second = (expert[name] - method.base[name] for expert in experts)
        assert torch.linalg.matrix_rank(first, rtol=1e-4) == 2
        assert torch.linalg.matrix_rank(second, rtol=1e-4) == (4 if training == "sequential" else 2)
        largest = torch.where(second.abs() >= first.abs(), second, first)
        torch.testing.assert_close(method.merged[name], method.base[name] + 0.5 * largest)


@pytest.mark.parametrize("adapter", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("method", ["naive", "magmax"])
def test_what_a_run_with_adapters_leaves_is_a_network_without(
    root: Path, tmp_path: Path, method: str, adapter: str
) -> None:
    lora = {"learn": adapter, "rank": 2, "adapted": ["query", "output.dense"]}
    made = recipe(texts(root, epochs=1, model=lora, method=method))
    stream, running = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    for _ in train(learner, running, stream, build.schedule(made)):
        pass
    weights, file = running.weights(learner), tmp_path / "left.safetensors"
    save_file(without_adapters(learner.model, weights), file)
    inputs = next(stream.tasks[0].test.ready(learner.device).batches(16))[0]
    with torch.no_grad():
        learner.model.eval()
        trunk = {name.removeprefix("trunk."): each for name, each in weights.items() if name.startswith("trunk.")}
        expected = functional_call(learner.model.trunk, trunk, (inputs,))
        for learn in ({"learn": "all"}, lora):
            other = build.learner(recipe(texts(root, model=learn, weights=str(file))), stream).model.eval()
            torch.testing.assert_close(other.trunk(inputs), expected, rtol=1e-4, atol=1e-5)
    lifelong.run(**texts(root, epochs=1, model=lora, method=method), out=tmp_path / "run")
    with safe_open(tmp_path / "run" / "model.safetensors", "pt") as left:
        assert set(left.keys()) == set(load_file(file))


@pytest.mark.parametrize("rule", ["fisher", "regmean"])
def test_statistics_are_of_the_weights_that_adapters_change(root: Path, rule: str) -> None:
    lora = {"learn": "lora", "rank": 2, "adapted": ["query", "output.dense"]}
    made = recipe(texts(root, epochs=1, model=lora, method="merge", method_settings={"rule": rule}))
    stream, method = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    assert isinstance(method, Merge)
    for event in train(learner, method, stream, build.schedule(made)):
        if isinstance(event, TaskDone):
            found = method.statistics(learner, event.task)
            names = {name for name in method.base if name.startswith("trunk.")}
            assert len(names & found.keys()) == len(names) == 9
            assert not any(learner.model.get_parameter(name).requires_grad for name in names)
            break
    if rule == "regmean":
        return
    # The Fisher information of a weight W under an adapter that changes nothing is that of W alone.
    plain = recipe(texts(root, epochs=1, method="merge", method_settings={"rule": rule}))
    other = build.learner(plain, stream)
    own = {name.replace(".base_layer", ""): each for name, each in learner.model.named_parameters()}
    with torch.no_grad():
        for name, parameter in other.model.named_parameters():
            parameter.copy_(own[name])
    expected = curvature.fisher(
        other.model,
        lambda inputs: other.model(inputs, 0),
        samples.of_task(other, stream.tasks[0], None),
        kind="sampled",
        generator=randomness.generator(other.seed, "fisher", 0),
    )
    for name in names:
        torch.testing.assert_close(found[name], expected[name.replace(".base_layer", "")], rtol=1e-4, atol=1e-8)
