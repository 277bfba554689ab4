"""Tasks that predict a number, beside tasks of classes and alone."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression

import lifelong
from lifelong import cli, curvature, streams
from lifelong.data import Dataset, Samples, from_tensors, load
from lifelong.errors import InputError
from lifelong.experiments import build
from lifelong.experiments.recipe import recipe
from lifelong.learner import Learner
from lifelong.meta.episodes import class_pool
from lifelong.methods import METHODS
from lifelong.methods.distilled import distilled
from lifelong.streams import Scenario, Stream
from lifelong.training import evaluation, loop
from lifelong.training.early_stopping import EarlyStopping

FOR_CLASSES = [name for name, kind in METHODS.items() if not kind.regression and Scenario.TASK in kind.scenarios]
ADAM = {"optimizer": "adam", "lr": 3e-3, "threads": 1}
ABLE = [name for name, kind in METHODS.items() if kind.regression]


def ink() -> Dataset:
    """The digits again, with the sum of their pixels as a number to predict."""
    digits = load("digits")
    parts = [(each.inputs, each.inputs.flatten(1).sum(1).float()) for each in (digits.train, digits.test)]
    return from_tensors(parts[0], parts[1], name="ink", classes=["ink"], numbers=True)


def mixed(**cut: Any) -> Stream:
    """Digits by class, then their ink: other outputs of other kinds over the same pictures."""
    return streams.domains([load("digits"), ink()], scenario=Scenario.TASK, cut=streams.Cut(standardize=True, **cut))


def learned(method: str, stream: Stream, out: Path | None = None, **more: Any) -> dict[str, Any]:
    values = {"model_settings": {"hidden": [64]}, "epochs": 10, "batch_size": 32, "device": "cpu"}
    return lifelong.run(stream=stream, method=method, out=out, **{**values, **ADAM, **more})


def test_numbers_are_put_on_the_scale_of_their_training_samples() -> None:
    stream, whole = mixed(train_samples=300), ink()
    first, second = stream.tasks
    assert (first.scale, first.classes, second.classes) == (None, tuple(range(10)), (0,))
    assert second.labels == ("ink",)
    assert {each.train.targets.dtype for each in stream.tasks} == {torch.float32}
    mean, deviation = second.scale or (0, 0)
    assert float(second.train.targets.mean()) == pytest.approx(0, abs=1e-5)
    assert float(second.train.targets.std(correction=0)) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(second.test.targets * deviation + mean, whole.test.targets.float())


def test_domains_of_numbers_share_a_head_and_the_scale_of_the_first() -> None:
    whole = ink()
    far = replace(whole, name="far", train=Samples(whole.train.inputs, whole.train.targets * 2 + 5))
    stream = streams.domains([whole, far], cut=streams.Cut(standardize=True))
    assert stream.tasks[0].scale == stream.tasks[1].scale
    first, second = (task.train.targets for task in stream.tasks)
    mean, deviation = stream.tasks[0].scale or (0, 0)
    torch.testing.assert_close(second, first * 2 + (mean + 5) / deviation)
    assert learned("naive", stream)["accuracy"][1][0] > 0.8


@pytest.mark.parametrize("method", ABLE)
def test_methods_learn_a_number_after_classes(method: str) -> None:
    more: dict[str, Any] = {"validation": 0.1} if method == "hat" else {}
    result = learned(method, mixed(train_samples=600), **more)
    assert result["scores"] == ["accuracy", "r2"]
    before, after, end = result["accuracy"]
    if method == "feature-extraction":  # its trunk knows digits alone
        assert end[1] > 0.1
        return
    assert after[0] > before[0] + 0.4
    own = result["merging"]["expert_accuracy"][1] if result["merging"] else end[1]
    assert own > 0.5


@pytest.mark.parametrize("method", FOR_CLASSES)
def test_methods_for_classes_say_so(method: str) -> None:
    with pytest.raises(InputError, match=f"method {method} is for classes, and a target is a number to predict"):
        learned(method, mixed(train_samples=60))


def test_joint_training_is_as_good_as_least_squares_where_that_is_the_answer(tmp_path: Path) -> None:
    frame = load_diabetes(as_frame=True).frame
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "diabetes.csv", index=False)
    frame.assign(old=np.where(frame["age"] > 0, "yes", "no")).drop(columns=["target"]).to_csv(
        tmp_path / "old.csv", index=False
    )
    names = f"{tmp_path / 'old.csv'},{tmp_path / 'diabetes.csv'}"
    settings = {"data": names, "target": "old,target:number", "scenario": "task", "standardize": True}
    steps = {"method": "joint", "epochs": 40, "batch_size": 32, "model_settings": {"hidden": []}, **ADAM}
    result = lifelong.run(stream="domains", **settings, **steps)
    data = load(str(tmp_path / "diabetes.csv"), target="target:number")
    line = LinearRegression().fit(data.train.inputs, data.train.targets)
    best = line.score(data.test.inputs, data.test.targets)
    assert best > 0.4
    assert result["accuracy"][-1][1] == pytest.approx(best, abs=0.03)
    assert result["accuracy"][-1][0] > 0.9


def learner_of(stream: Stream) -> Learner:
    learner = build.learner(recipe({"model_settings": {"hidden": [5]}, "device": "cpu"}), stream)
    for task in stream.tasks:
        learner.model.head.grow(len(task.classes))
    return learner


def test_the_fisher_of_a_number_is_that_of_a_gaussian() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    inputs, targets = torch.randn(7, 3).double(), torch.randn(7).double()
    by_kind: dict[str, dict[str, torch.Tensor]] = {"true": {}, "empirical": {}}
    for row, target in zip(inputs, targets, strict=True):
        output = model(row.unsqueeze(0))[0, 0]
        found = torch.autograd.grad(output, list(model.parameters()))
        for (name, _), gradient in zip(model.named_parameters(), found, strict=True):
            for kind, error in (("true", 1.0), ("empirical", float(target - output.detach()))):
                total = by_kind[kind].get(name, torch.zeros_like(gradient))
                by_kind[kind][name] = total + (error * gradient) ** 2 / len(inputs)
    for kind, expected in by_kind.items():
        torch.testing.assert_close(curvature.fisher(model, model, [(inputs, targets)], kind=kind), expected)  # type: ignore[arg-type]
    drawn = torch.Generator().manual_seed(0)
    many = [(inputs, targets)] * 3000
    sampled = curvature.fisher(model, model, many, kind="sampled", generator=drawn)
    for name, expected_values in by_kind["true"].items():
        torch.testing.assert_close(sampled[name], expected_values, rtol=0.1, atol=1e-4)


def test_lwf_holds_a_number_by_half_the_square_of_its_change() -> None:
    lwf = METHODS["lwf"]()
    old, new = torch.randn(5, 1), torch.randn(5, 1)
    assert float(lwf._divergence(new, old, True)) == pytest.approx(float(((old - new) ** 2).mean() / 2))  # type: ignore[attr-defined]
    assert float(lwf._divergence(new, old, False)) == 0  # type: ignore[attr-defined]


def test_a_merge_learns_numbers_from_its_expert() -> None:
    stream = mixed(train_samples=200)
    learner = learner_of(stream)
    expert = {name: each.detach().clone() for name, each in learner.model.named_parameters()}
    merged = {name: each + 0.1 * torch.randn_like(each) for name, each in expert.items() if name.startswith("trunk.")}
    split = stream.tasks[1].train.ready(torch.device("cpu"))
    batches = [inputs for inputs, _ in split.batches(50)]
    wanted = learner.model(batches[0], 1)

    def away(weights: dict[str, torch.Tensor]) -> float:
        found = torch.func.functional_call(learner.model, weights, (batches[0], 1))
        return float((found - wanted).detach().square().mean())

    taught = distilled(learner, merged, {}, {}, [10, 1], batches, epochs=20, learning_rate=1e-2, numbers=True)
    assert away(taught) < 0.2 * away(merged)


def test_a_score_below_zero_counts_as_none_but_early_stopping_sees_it() -> None:
    stream = mixed(train_samples=200, validation=0.5)
    learner, method, task = learner_of(stream), METHODS["naive"](), stream.tasks[1]
    with torch.no_grad():
        learner.model.head.blocks[1].bias.fill_(10.0)  # type: ignore[index, union-attr]
    assert evaluation.score(learner, method, task, task.test) < -10
    assert evaluation.accuracy(learner, method, task, task.test) == 0
    stopping = EarlyStopping(patience=1)
    for bias in (10.0, 8.0, 6.0):
        with torch.no_grad():
            learner.model.head.blocks[1].bias.fill_(bias)  # type: ignore[index, union-attr]
        stopping.look(learner, method, task)
    assert not learner.clock.stop_task


def test_a_run_that_is_cut_short_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = learned("er", mixed(train_samples=100), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "cut")
    resumed = learned("er", mixed(train_samples=100), tmp_path / "cut", resume=True)
    assert resumed["accuracy"] == whole["accuracy"]
    files = [tmp_path / each / "model.safetensors" for each in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def interrupted(out: Path) -> None:
    from lifelong.experiments.run import Every, events
    from lifelong.training.loop import Step

    made = recipe(
        {
            "scenario": "task",
            "tasks": 2,
            "method": "er",
            "model_settings": {"hidden": [64]},
            "epochs": 10,
            "batch_size": 32,
            "device": "cpu",
            **ADAM,
        }
    )
    steps = 0
    for event in events(made, out, checkpoint_every=Every(3), stream=mixed(train_samples=100)):
        steps += isinstance(event, Step)
        if steps == 21:
            raise KeyboardInterrupt


def rows(folder: Path, **columns: Any) -> str:
    path = folder / "rows.csv"
    pandas.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], **columns}).to_csv(path, index=False)
    return str(path)


@pytest.mark.parametrize(
    ("columns", "target", "says"),
    [
        ({"y": ["x", "z", "x", "z"]}, "y:number", "target 'y' is said to be a number, and it holds text"),
        ({"y": [1.0, None, 2.0, 3.0]}, "y:number", "column 'y' lacks 1 of its 4 values"),
        ({"y": [2.0, 2.0, 2.0, 2.0]}, "y:number", "all training targets are 2, so there is nothing to predict"),
        ({"y": [0.5, 1.0, 2.0, 3.0]}, "y", "say target = y:number to predict them as numbers"),
        ({"y": [0.5, 1.0, 2.0, 3.0]}, "z:number", "has no column 'z'"),
        ({"y": pandas.to_datetime([1, 2, 3, 4])}, "y:number", "holds dates or times: write them as numbers"),
        ({"y": pandas.to_timedelta([1, 2, 3, 4])}, "y:number", "holds dates or times: write them as numbers"),
    ],
)
def test_wrong_numbers_in_tables(tmp_path: Path, columns: dict[str, Any], target: str, says: str) -> None:
    path = tmp_path / "rows.parquet"  # which keeps the kinds of columns
    pandas.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], **columns}).to_parquet(path)
    with pytest.raises(InputError) as error:
        load(str(path), target=target)
    assert says in str(error.value)


def test_a_layout_of_the_hub_with_numbers(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": [f"{n} stars" for n in range(20)], "stars": np.arange(20) / 4})
    (tmp_path / "reviews").mkdir()
    frame.to_parquet(tmp_path / "reviews" / "train.parquet")

    class Letters:
        fingerprint = "letters"

        def __call__(self, texts: Any) -> torch.Tensor:
            return torch.tensor([[ord(text[0])] for text in texts])

    data = load(str(tmp_path / "reviews"), target="stars:number", tokenizer=Letters)
    assert data.numbers
    assert data.classes == ("stars",)
    assert sorted(torch.cat([data.train.targets, data.test.targets]).tolist()) == (np.arange(20) / 4).tolist()
    with pytest.raises(InputError, match=r"label column .stars. holds fractions such as 0\.25"):
        load(str(tmp_path / "reviews"), target="stars", tokenizer=Letters)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--stream", "split"], "stream split needs classes, and the targets of rows, y, are numbers to predict"),
        (["--stream", "domains", "--scenario", "class"], "scenario class tells classes apart"),
        (["--stream", "permuted", "--method", "icarl", "--scenario", "task"], "method icarl cannot do scenario task"),
        (["--stream", "permuted", "--method", "der"], "method der is for classes"),
        (
            ["--stream", "permuted", "--method", "magmax", "--method.answers", "class-means"],
            "magmax is, under its settings, for classes",
        ),
        (["--stream", "permuted", "--head-rows", "class-means", "--scenario", "task"], "head_rows = class-means is"),
        (["--stream", "domains", "--target", "y:number,y:number,y"], "names 3 columns for 1 data sets"),
    ],
)
def test_wrong_input_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    data = rows(tmp_path, y=[0.5, 1.0, 2.0, 3.0])
    out = ["--out", str(tmp_path / "out"), "--data", data]
    assert cli.main(["run", "--target", "y:number", *out, *argv]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_one_head_for_classes_and_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="head single is one for all tasks, and some predict a number"):
        learned("naive", mixed(train_samples=60), head="single")


def test_class_means_are_refused_wherever_the_number_comes() -> None:
    with pytest.raises(InputError, match="method magmax is, under its settings, for classes"):
        learned("magmax", mixed(train_samples=60), method_settings={"answers": "class-means"})


def test_a_comparison_refuses_methods_for_classes_before_any_is_run(tmp_path: Path) -> None:
    data = rows(tmp_path, y=[0.5, 1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="method der is for classes"):
        lifelong.compare(["naive", "der"], data=data, target="y:number", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_far_from_zero_keep_their_differences() -> None:
    numbers = 1.7e9 + torch.arange(50, dtype=torch.float64)
    data = from_tensors((torch.randn(50, 3), numbers), (torch.randn(50, 3), numbers), numbers=True)
    task = streams.domains([data]).tasks[0]
    steps = task.train.targets.diff() * (task.scale or (0, 0))[1]
    torch.testing.assert_close(steps, torch.ones(49), rtol=1e-4, atol=1e-4)
    huge = torch.tensor([1e300, -1e300], dtype=torch.float64)
    data = from_tensors((torch.randn(2, 3), huge), (torch.randn(2, 3), huge), numbers=True)
    with pytest.raises(InputError, match="too large to be predicted"):
        streams.domains([data])


def test_a_target_of_the_tests_that_is_out_of_all_proportion() -> None:
    near, far = torch.arange(4, dtype=torch.float64), torch.tensor([1.0, 1e39], dtype=torch.float64)
    data = from_tensors((torch.randn(4, 3), near), (torch.randn(2, 3), far), numbers=True)
    with pytest.raises(InputError, match=r"has the target 1e\+39, too far from its mean 1\.5"):
        streams.domains([data])
    with pytest.raises(InputError, match="must be real"):
        from_tensors((torch.randn(4, 3), near + 1j), (torch.randn(2, 3), far), numbers=True)


def test_a_column_of_seconds_is_no_column_of_dates(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    seconds = [1.6e9, 1.6e9 + 1, 1.6e9 + 2, 1.6e9 + 3]
    pandas.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "timestamp": seconds}).to_json(path, orient="records", lines=True)
    data = load(str(path), target="timestamp:number")
    assert sorted(torch.cat([data.train.targets, data.test.targets]).tolist()) == seconds


def test_one_name_for_the_number() -> None:
    with pytest.raises(InputError, match="is the one name of the numbers"):
        from_tensors((torch.zeros(2, 3), [1.0, 2.0]), (torch.zeros(2, 3), [1.0, 2.0]), numbers=True, classes=["a", "b"])


@pytest.mark.parametrize(
    "cells", [[Decimal("1.50"), Decimal("2.25"), Decimal(3), Decimal(8)], ["1.5", "2.25", "3", "8"]]
)
def test_decimals_and_digits_are_numbers_too(tmp_path: Path, cells: list[Any]) -> None:
    path = tmp_path / "rows.parquet"
    pandas.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "y": cells}).to_parquet(path)
    data = load(str(path), target="y:number")
    assert sorted(torch.cat([data.train.targets, data.test.targets]).tolist()) == [1.5, 2.25, 3.0, 8.0]
    if isinstance(cells[0], Decimal):
        with pytest.raises(InputError, match="label column 'y' holds fractions such as"):
            load(str(path), target="y")


def test_results_say_how_to_turn_answers_into_numbers() -> None:
    stream = mixed(train_samples=60)
    assert learned("naive", stream, epochs=1)["scales"] == [None, stream.tasks[1].scale]


def test_progress_tells_the_accuracy_of_samples_with_classes() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.3, -torch.inf]])
    step = loop.Step(mixed().tasks[0], torch.zeros(()), logits, torch.tensor([0.0, 0.0, 0.3]), False)
    assert step.accuracy() == 0.5
    assert replace(step, logits=logits[2:], targets=step.targets[2:]).accuracy() is None


def test_meta_learning_refuses_numbers() -> None:
    with pytest.raises(InputError, match="meta-learning needs classes, and the targets of ink, ink, are numbers"):
        class_pool(ink())


def test_domains_of_classes_and_numbers_need_heads_of_their_own() -> None:
    with pytest.raises(InputError, match=r"ink predicts a number \(ink\) and digits classes: use scenario task"):
        streams.domains([load("digits"), ink()])


def test_reports_say_what_stands_for_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learned("naive", mixed(train_samples=60), tmp_path / "run")
    assert cli.main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "page.md")]) == 0
    assert "Accuracy is R² in ink, 0 where it is below." in capsys.readouterr().out
    assert "Accuracy is R² in ink" in (tmp_path / "page.md").read_text()
    assert cli.main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "page.html")]) == 0
    assert "Accuracy is R² in ink" in (tmp_path / "page.html").read_text()
