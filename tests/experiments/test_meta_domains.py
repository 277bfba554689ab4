"""Meta-learning where a task is a domain, and of texts: what is drawn, what is refused, and that it is learned."""

from __future__ import annotations

import csv
import itertools
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import lifelong
from lifelong.cli import main
from lifelong.errors import InputError
from lifelong.experiments import meta_build, meta_tasks
from lifelong.experiments.meta_recipe import meta_recipe
from lifelong.experiments.meta_run import meta_events, meta_test
from lifelong.experiments.run import Finished
from lifelong.meta import Engine, FewShot, gradient
from lifelong.tree import Params

THINGS = ("book", "film", "lens", "plot", "pan", "lamp")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text encoder, and reviews of things that are good where they say so."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("root")
    words = (*tiny.WORDS, "pan", "lamp")
    tiny.bert(folder / "bert", words=words, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for thing in THINGS:
        rows = [
            {"review": f"{' '.join(filler)} {thing} {verdict}", "label": verdict}
            for filler in itertools.product(("a", "the", "was", "very"), repeat=2)
            for verdict in ("good", "bad")
        ]
        path = folder / f"{thing}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def domains(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data": ",".join(f"{root}/{thing}.jsonl" for thing in THINGS),
        "shots": 3,
        "queries": 5,
        "model": {
            "name": f"hf:{root}/bert",
            "learn": "head",
            "tokens": 8,
            "pooling": "mean",
            "hidden": [16],
            **changes.pop("model", {}),
        },
        "iterations": 40,
        "tasks": 4,
        "lr": 1e-2,
        "validate_every": 20,
        "validation_tasks": 10,
        "test_tasks": 30,
        "tasks_at_once": 4,
        "threads": 1,
        "device": "cpu",
        **changes,
    }


def result_of(values: dict[str, Any], out: Path) -> dict[str, Any]:
    *_, last = meta_events(meta_recipe(values), out)
    assert isinstance(last, Finished)
    return last.result


def test_domains_are_divided_by_the_split_seed_alone(root: Path) -> None:
    def names(**changes: Any) -> list[list[str]]:
        tasks = meta_tasks.sources(meta_recipe(domains(root, **changes)))
        parts = [each for each in (tasks.train, tasks.validation, tasks.test) if isinstance(each, FewShot)]
        return [list(dict.fromkeys(name.split("/")[0] for name in part.pool.names)) for part in parts]

    drawn = names()
    assert [len(part) for part in drawn] == [4, 1, 1]
    assert sorted(name for part in drawn for name in part) == sorted(THINGS)
    assert names(seed=5) == drawn
    assert names(split_seed=1) != drawn
    some = ",".join(f"{root}/{thing}.jsonl" for thing in ("book", "film", "lens"))
    given = {"data": some, "validation_data": f"{root}/plot.jsonl", "test_data": f"{root}/pan.jsonl,{root}/lamp.jsonl"}
    assert names(**given) == [["book", "film", "lens"], ["plot"], ["pan", "lamp"]]


def test_a_start_is_learned_that_knows_other_domains(root: Path, tmp_path: Path) -> None:
    found = result_of(domains(root, algorithm={"name": "anil", "rate": 0.5, "steps": 2, "test_steps": 3}), tmp_path)
    assert found["test"][-1] > 0.75  # features of a random network; guessing gives 0.5
    again = meta_test(tmp_path, {})
    assert again["test"] == found["test"]
    with pytest.raises(InputError, match=r"book.jsonl is named more than once among data, validation_data and test_da"):
        meta_test(tmp_path, {"test_data": f"{root}/book.jsonl"})
    with pytest.raises(InputError, match=r"was trained on domain .*/\w+\.jsonl"):
        meta_test(tmp_path, {"split_seed": 1})
    # The layers above the features that stay are the start of a stream, too.
    stream = {"stream": "domains", "data": f"{root}/book.jsonl", "model": f"hf:{root}/bert", "device": "cpu"}
    head = {"learn": "head", "tokens": 8, "pooling": "mean"}
    kept = {"weights": str(tmp_path), "steps": 1, "lr": 1e-12}
    run = lifelong.run(**stream, model_settings={**head, "hidden": [16]}, out=tmp_path / "run", **kept)
    assert run["parameters"] == 17 * 16 + 17 * 2
    ours, theirs = (load_file(each / "model.safetensors") for each in (tmp_path / "run", tmp_path))
    torch.testing.assert_close(ours["trunk.1.weight"], theirs["trunk.1.weight"])


@pytest.mark.parametrize("order", ["first", "second"])
def test_the_meta_gradient_of_a_whole_text_encoder_is_that_of_an_unrolled_step(root: Path, order: str) -> None:
    settings = {"name": "maml", "rate": 0.1, "steps": 1, "first_order": order == "first"}
    recipe = meta_recipe(domains(root, model={"learn": "all", "hidden": []}, algorithm=settings, tasks_at_once="auto"))
    tasks, made = meta_tasks.sources(recipe), meta_build.algorithm(recipe)
    how = meta_build.choose_engine(recipe, tasks, made)
    assert how == Engine("loop", 1)
    training = meta_build.training(recipe, tasks, made, how)
    drawn = tasks.train.draw(2, torch.Generator().manual_seed(0))
    found = gradient(made, training.problem, how, training.meta, {}, drawn, 0).gradient

    body, head = meta_build.trunk(recipe, tasks.train.sample(), 2)
    network = torch.nn.Sequential(OrderedDict(trunk=body, head=head)).train()
    weights = dict(network.named_parameters())

    def loss(values: Params, inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(torch.func.functional_call(network, values, (inputs,)), targets)

    total = torch.zeros(())
    for task in range(2):
        first = loss(weights, drawn.support[task], drawn.support_targets[task])
        slopes = torch.autograd.grad(first, list(weights.values()), create_graph=order == "second", allow_unused=True)
        moved = {
            name: each if slope is None else each - 0.1 * slope
            for (name, each), slope in zip(weights.items(), slopes, strict=True)
        }
        total = total + loss(moved, drawn.query[task], drawn.query_targets[task]) / 2
    total.backward()
    for name, each in weights.items():
        expected = torch.zeros_like(each) if each.grad is None else each.grad
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-3, msg=name)


def test_a_whole_text_encoder_is_trained_and_tested(root: Path, tmp_path: Path) -> None:
    short = {"iterations": 2, "validation_tasks": 2, "test_tasks": 2, "tasks_at_once": "auto"}
    algorithm = {"name": "reptile", "steps": 2, "test_steps": 2}
    found = result_of(domains(root, model={"learn": "all", "hidden": []}, algorithm=algorithm, **short), tmp_path)
    assert found["engine"] == {"formulation": "loop", "tasks_at_once": 1, "threads": 1}
    assert meta_test(tmp_path, {})["test"] == found["test"]


def test_supervised_learning_starts_a_new_domain_with_its_own_head(root: Path, tmp_path: Path) -> None:
    found = result_of(domains(root, algorithm="fine-tuning", iterations=100), tmp_path)
    assert found["test"][0] > 0.7  # before any step: a head of zeros would be right by chance


def test_classes_of_texts_make_tasks(root: Path, tmp_path: Path) -> None:
    with (tmp_path / "things.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, ["title", "story", "kind"])
        rows.writeheader()
        for thing, filler in itertools.product((*THINGS, "good", "bad"), itertools.product(("a", "the"), repeat=3)):
            rows.writerow({"title": "a", "story": f"{' '.join(filler)} {thing}", "kind": thing})
    classes = {"data": f"{tmp_path}/things.csv", "text": "story", "target": "kind", "ways": 2, "validate_every": 0}
    values = domains(root, **classes, validation_classes=0, test_classes=3, algorithm="protonet", iterations=1)
    assert result_of(values, tmp_path / "run")["test"][0] > 0.7  # words of their own, even in a random network
    with pytest.raises(InputError, match=r"text in several columns \(title, story\): name one with text"):
        result_of({**values, "text": None}, tmp_path / "other")


FEW: dict[str, Any] = {
    "ways": 2,
    "shots": 2,
    "queries": 3,
    "iterations": 10,
    "tasks": 4,
    "validation_classes": 0,
    "test_classes": 2,
    "test_tasks": 20,
    "formulation": "columns",
    "tasks_at_once": 4,
    "threads": 1,
    "device": "cpu",
}


def test_own_pictures_make_tasks(tmp_path: Path) -> None:
    for label, number in itertools.product(range(6), range(8)):
        path = tmp_path / "pictures" / f"kind {label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (40 * label, 255 - 40 * label, 8 * number)).save(path)
    found = result_of({**FEW, "data": f"{tmp_path}/pictures", "algorithm": "protonet"}, tmp_path / "run")
    assert found["test"][0] > 0.9
    assert found["example"] is not None


def test_the_columns_of_a_table_may_have_any_units(tmp_path: Path) -> None:
    with (tmp_path / "points.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["metres", "share", "kind"])
        for label, number in itertools.product(range(8), range(8)):
            rows.writerow([5000 + 100 * label + number, 0.37 * label % 1 + 0.001 * number, f"kind {label}"])
    table = {**FEW, "data": f"{tmp_path}/points.csv", "target": "kind", "algorithm": "anil"}
    assert result_of(table, tmp_path / "run")["test"][-1] > 0.9
    raw = result_of({**table, "standardize": False}, tmp_path / "raw")
    assert raw["test"][-1] < 0.7  # thousands of metres, at the same inner rate


def test_names_by_commas_are_names_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--data", "a,b", "--validation-data", "c,d", "--test-data", "e,b", "--out", str(tmp_path / "run")]
    assert main(["meta", "train", *words]) == 2
    assert "domain b is named more than once among data, validation_data and test_data" in capsys.readouterr().err


def test_a_test_may_name_the_classes_that_domains_have(tmp_path: Path) -> None:
    names = [f"{tmp_path}/{'much ' * 20}{place}.csv" for place in range(5)]  # together longer than a path can be
    for place, name in enumerate(names):
        rows = [f"{number / 8 + place},{number}.5,{'ab'[number % 2]}" for number in range(12)]
        Path(name).write_text("\n".join(["x,y,label", *rows]))
    unset = dict.fromkeys(("ways", "validation_classes", "test_classes"))
    result_of({**FEW, **unset, "data": ",".join(names), "algorithm": "maml"}, tmp_path / "run")
    assert meta_test(tmp_path / "run", {"ways": 2})["test"] == meta_test(tmp_path / "run", {})["test"]
    with pytest.raises(InputError, match="ways = 3 does not fit domains of 2 classes"):
        meta_test(tmp_path / "run", {"ways": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"standardize": True, "model": {"learn": "all", "hidden": []}}, r"standardize is for rows of numbers"),
        ({"ways": 3}, "ways = 3 does not fit domains of 2 classes, all in each task: leave it out"),
        ({"train_classes": 1}, "train_classes = 1 divides classes, and domains have them all"),
        ({"rotations": "all"}, "rotations = all makes further classes"),
        ({"test_data": "digits"}, r"data digits, model hf:.* does not take samples of shape \(1, 8, 8\)"),
        ({"test_data": "{root}/kinds.jsonl"}, "kinds has the classes fine, poor, and book bad, good: domains share"),
        ({"test_data": "{root}/numbers.csv"}, r"data numbers, model hf:.* does not take samples of shape \(1,\)"),
        ({"test_data": "{root}/boook.jsonl"}, "boook.jsonl"),
        (
            {"data": "{root}/book.jsonl", "validation_data": "{root}/pan.jsonl"},
            "book.jsonl leaves no domain to train on",
        ),
        ({"text": "revew"}, "has no column 'revew', did you mean 'review'"),
        ({"model": "mlp"}, "holds text in column 'review': model mlp reads no text: take minilm"),
        ({"model": {"hidden": []}, "algorithm": "protonet"}, "algorithm protonet learns what is below the head"),
        ({"model": {"learn": "all"}}, "model.hidden is for model.learn head, and model.learn is all"),
        ({"model": {"learn": "lora", "hidden": []}}, "model.learn = lora is for lifelong run"),
        ({"model": {"learn": "all", "hidden": []}, "formulation": "vmap"}, "formulation vmap is not for all of hf:"),
    ],
)
def test_what_does_not_fit_is_one_line(root: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (root / "kinds.jsonl").write_text(
        "".join(json.dumps({"review": "a book", "label": label}) + "\n" for label in ("fine", "poor") * 10)
    )
    (root / "numbers.csv").write_text("a,label\n" + "1.5,bad\n2.5,good\n" * 10)
    filled = {
        key: each.format(root=root) if isinstance(each, str) else each
        for key, each in changes.items()
        if key != "model" or isinstance(each, dict)
    }
    values = domains(root, **filled)
    if changes.get("model") == "mlp":
        values["model"] = "mlp"
    with pytest.raises(InputError, match=message):
        result_of(values, tmp_path / "run")
