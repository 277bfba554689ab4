"""Merging as a continual method, against what is merged offline, in float64, from the weights after each task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lifelong import tree
from lifelong.cli import main
from lifelong.curvature.per_sample import evaluating
from lifelong.errors import InputError
from lifelong.experiments import build
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import run
from lifelong.learner import Batch, Learner
from lifelong.merging.distillation import divergence
from lifelong.merging.pool import Pool
from lifelong.methods import AdaMerging, MagMax, Merge, ModelSoup, Naive
from lifelong.methods import build as build_method
from lifelong.methods.merging import Merging, conflicts, shares
from lifelong.methods.routes import Routes, answered
from lifelong.streams import Stream
from lifelong.training import loop
from lifelong.training.evaluation import accuracy
from lifelong.training.loop import TaskDone, TaskStarted
from lifelong.training.metrics import normalised_accuracy
from lifelong.tree import Params


def values(method: str, **more: Any) -> dict[str, Any]:
    return {
        "stream": "split",
        "data": "digits",
        "scenario": "task",
        "tasks": 3,
        "method": method,
        "model": {"name": "mlp", "hidden": [16, 12]},
        "train_samples": 60,
        "batch_size": 16,
        "steps": 12,
        "lr": 0.01,
        "device": "cpu",
        "threads": 1,
        **more,
    }


def learned(method: str, **more: Any) -> Iterator[tuple[TaskStarted | TaskDone, Learner, Merging, Stream]]:
    """Where each task begins and where it ends, with what is learned so far."""
    made = recipe(values(method, **more))
    stream, running = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    assert isinstance(running, Merging)
    for event in loop.train(learner, running, stream, build.schedule(made)):
        if isinstance(event, TaskStarted | TaskDone):
            yield event, learner, running, stream


def trunk(learner: Learner) -> Params:
    return tree.snapshot({name: each for name, each in tree.weights(learner.model).items() if "trunk" in name})


def whole(method: str, **more: Any) -> tuple[list[Params], list[Params], Learner, Merging, Stream]:
    """The trunk at the beginning and after each task, and at the end all that there is."""
    begun, experts = [], []
    for event, *found in learned(method, **more):
        (begun if isinstance(event, TaskStarted) else experts).append(trunk(found[0]))
    return begun, experts, *found


def offline_magmax(base: Params, experts: list[Params], scale: float) -> Params:
    """The change of largest magnitude, the later one where two are equal, number by number in float64."""
    found = {}
    for name, start in base.items():
        changes = torch.stack([each[name].double() - start.double() for each in experts])
        last = len(changes) - 1 - changes.abs().flip(0).argmax(0, keepdim=True)
        found[name] = start.double() + scale * changes.gather(0, last)[0]
    return found


def double(params: Params) -> Params:
    return {name: each.double() for name, each in params.items()}


@pytest.mark.parametrize(("method", "scale"), [("magmax", 0.5), ("maxabs", 1.0)])
def test_the_running_maximum_is_that_of_all_task_vectors(method: str, scale: float) -> None:
    begun, experts, _, running, _ = whole(method)
    torch.testing.assert_close(double(running.merged), offline_magmax(begun[0], experts, scale), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["avg-sequential", "avg-independent"])
def test_the_average_is_the_mean_of_the_weights_after_each_task(method: str) -> None:
    _, experts, _, running, _ = whole(method)
    mean = {name: torch.stack([each[name] for each in double_all(experts)]).mean(0) for name in experts[0]}
    torch.testing.assert_close(double(running.merged), mean, rtol=1e-6, atol=1e-7)


def double_all(trees: list[Params]) -> list[Params]:
    return [double(each) for each in trees]


def test_training_goes_on_from_the_last_weights_or_back_to_the_first() -> None:
    begun, experts, *_ = whole("magmax")
    torch.testing.assert_close(begun[1:], experts[:-1], rtol=0, atol=0)
    begun, experts, *_ = whole("maxabs")
    torch.testing.assert_close(begun[1:], [begun[0]] * 2, rtol=0, atol=0)
    assert any((experts[0][name] != begun[0][name]).any() for name in begun[0])


def test_independent_training_begins_with_the_first_statistics_too() -> None:
    model = {"name": "convnet", "channels": [4]}
    begun, *_ = whole("avg-independent", model=model)
    assert any("running_mean" in name for name in begun[0])
    torch.testing.assert_close(begun[2], begun[0], rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("rule", ["magmax", "linear"])
def test_scale_is_how_far_the_answer_goes(rule: str, scale: float) -> None:
    begun, experts, _, running, _ = whole("merge", tasks=1, method_settings={"rule": rule, "scale": scale})
    expected = {name: start + scale * (experts[0][name] - start) for name, start in begun[0].items()}
    torch.testing.assert_close(running.merged, expected, rtol=1e-5, atol=1e-6)


def test_one_task_at_full_scale_is_answered_as_its_expert_does() -> None:
    result = run(recipe(values("magmax", tasks=1, method_settings={"scale": 1.0})))
    assert result["merging"]["expert_accuracy"] == result["accuracy"][1]
    assert result["merging"]["normalised_accuracy"] == 1


def test_experts_are_asked_for_their_own_classes_alone() -> None:
    settings: dict[str, Any] = {"scenario": "class", "method_settings": {"rule": "passthrough"}}
    result = run(recipe(values("merge", **settings)))
    *_, learner, _, stream = whole("merge", **settings)
    last = stream.tasks[-1]
    inputs, targets = last.test.ready(learner.device).batch(torch.arange(len(last.test)))
    with torch.no_grad(), evaluating(learner.model):
        own = learner.model(inputs, last.index)[:, list(last.classes)].argmax(1)
    right = (torch.tensor(last.classes)[own] == targets).float().mean()
    assert result["merging"]["expert_accuracy"][-1] == pytest.approx(float(right))
    # With outputs of earlier tasks beside them the same weights answer worse.
    assert result["merging"]["expert_accuracy"][-1] > result["accuracy"][-1][-1]


@pytest.mark.parametrize("rule", ["fisher", "regmean"])
def test_statistics_are_collected_and_no_old_data_is_kept(rule: str) -> None:
    result = run(recipe(values("merge", method_settings={"rule": rule})))
    assert not result["needs_old_data"]
    other = run(recipe(values("merge", method_settings={"rule": "linear"})))
    assert result["accuracy"][1] == other["accuracy"][1]  # of one expert each is the average
    _, experts, _, running, _ = whole("merge", method_settings={"rule": rule, "training": "independent"})
    name = next(name for name in experts[0] if name.endswith("weight"))
    assert not torch.allclose(running.merged[name], torch.stack([each[name] for each in experts]).mean(0))


def test_within_a_task_the_network_itself_answers() -> None:
    made = recipe(values("magmax"))
    stream, running = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    inputs = stream.tasks[0].test.ready(learner.device).batch(torch.arange(5))[0]
    for event in loop.train(learner, running, stream, build.schedule(made)):
        if isinstance(event, loop.Step | TaskDone) and event.task.index == 1:
            with evaluating(learner.model), torch.no_grad():
                same = torch.equal(running.logits(learner, inputs, 0), learner.model(inputs, 0))
            assert same == isinstance(event, loop.Step)


def test_heads_of_tasks_stay_as_they_were_learned() -> None:
    for weight_decay in (0.0, 0.5):
        optimizer = {"name": "adamw", "weight_decay": weight_decay}
        for scenario in ("task", "class"):
            heads = []
            for event, learner, _, _ in learned("magmax", scenario=scenario, optimizer=optimizer):
                if isinstance(event, TaskDone):
                    heads.append([each.clone() for each in learner.model.head.blocks.parameters()])
            torch.testing.assert_close(heads[-1][:2], heads[0][:2], rtol=0, atol=0)


def test_a_shared_head_is_merged_or_fixed() -> None:
    merged = list(learned("magmax", stream="permuted", scenario="domain"))[-1]
    assert "head.linear.weight" in merged[2].merged
    first, *_, last = learned("magmax", stream="permuted", scenario="domain", method_settings={"head": "fixed"})
    assert not any(name.startswith("head") for name in last[2].merged)
    fresh = build.learner(recipe(values("magmax", stream="permuted", scenario="domain")), first[3])
    torch.testing.assert_close(dict(last[1].model.head.state_dict()), dict(fresh.model.head.state_dict()))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"method_settings": {"head": "merged"}}, "head = merged of the merge needs one head for all tasks"),
        (
            {"method_settings": {"head": "apart"}, "stream": "permuted", "scenario": "domain"},
            "head = apart of the merge needs a head that is multi or growing",
        ),
        ({"method_settings": {"scale": "auto"}}, "scale = auto is chosen on validation samples, and there are none"),
    ],
)
def test_what_cannot_be_is_refused_before_training(more: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        next(learned("magmax", **more))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rule": "magmix"}, "unknown merge rule 'magmix', did you mean 'magmax'?"),
        ({"rule": "ties", "rule_settings": {"densty": 0.2}}, "merge rule ties has no setting 'densty', did you mean"),
        (
            {"rule_settings": {"scale": 1.0}, "scale": 0.5},
            r"rule_settings.scale = 1.0 is set beside scale = 0.5: give one",
        ),
    ],
)
def test_wrong_rules_are_refused_when_the_method_is_made(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        build_method("merge", settings)


def test_training_compares_the_outputs_of_the_task_alone_unless_told_otherwise() -> None:
    logits, targets = torch.randn(4, 6), torch.tensor([4, 5, 5, 1])
    batch = Batch(torch.empty(4, 1), targets, 2)
    *_, (_, learner, _, _) = learned("magmax", scenario="class", tasks=2)
    own = torch.full((6,), -torch.inf)
    own[4:] = 0
    compared = torch.stack(
        [
            F.cross_entropy((row + own).unsqueeze(0), t.unsqueeze(0))
            for row, t in zip(logits[:3], targets[:3], strict=True)
        ]
    )
    # The last one is a replayed sample, of an old class: compared with all.
    expected = torch.cat([compared, F.cross_entropy(logits[3:], targets[3:]).unsqueeze(0)]).mean()
    for outputs, wanted in (("task", expected), ("seen", F.cross_entropy(logits, targets))):
        method = MagMax(outputs=outputs)
        method.labels = [4, 5]
        torch.testing.assert_close(method.loss(learner, batch, logits, F.cross_entropy(logits, targets)), wanted)


def test_the_scale_is_that_which_answers_best_on_the_validation_samples_kept() -> None:
    settings = {"scale": "auto", "scales": [0.2, 0.6, 1.0], "validation_samples": 9}
    *_, learner, running, stream = whole("merge", validation=0.3, method_settings=settings)
    assert isinstance(running, Merge)
    assert len(running.memory) == 27
    found = []
    for scale in (0.2, 0.6, 1.0):
        *_, other, fixed, _ = whole("merge", validation=0.3, method_settings={"scale": scale})
        torch.testing.assert_close(other.model.state_dict(), learner.model.state_dict(), rtol=0, atol=0)
        rows = running.memory.rows(torch.arange(27))
        right = 0
        for task in stream.tasks:
            mine = rows["tasks"] == task.index
            with torch.no_grad(), evaluating(other.model):
                answers = fixed.logits(other, task.validation.scaled(rows["inputs"][mine]), task.index)
            right += int((answers.argmax(1) == rows["targets"][mine]).sum())
        found.append(right)
    assert running.chosen == (0.2, 0.6, 1.0)[int(np.argmax(found))]
    assert running.measures()["scale"] == running.chosen


def test_statistics_of_normalisation_are_averaged_or_estimated_anew() -> None:
    model = {"name": "convnet", "channels": [4]}
    _, experts, learner, running, stream = whole("magmax", model=model)
    name = next(name for name in experts[0] if name.endswith("running_var"))
    mean = torch.stack([each[name] for each in experts]).mean(0)
    torch.testing.assert_close(running.buffers[name], mean, rtol=1e-5, atol=1e-6)
    _, anew, learner, running, stream = whole("magmax", model=model, method_settings={"batch_norm": "anew"})
    torch.testing.assert_close(anew, experts, rtol=0, atol=0)  # the network itself keeps its own
    first = next(module for module in learner.model.modules() if isinstance(module, torch.nn.Conv2d))
    inputs = stream.tasks[-1].train.ready(learner.device)
    weight = running.merged[next(each for each in running.merged if each.endswith("0.weight"))]
    out = F.conv2d(
        inputs.scaled(inputs.inputs), weight, running.merged.get("trunk.0.bias"), first.stride, first.padding
    )
    torch.testing.assert_close(running.buffers[name], out.var((0, 2, 3)), rtol=1e-3, atol=1e-5)


def test_conflicts_are_the_share_of_opposed_signs_in_each_layer() -> None:
    base = {"a.weight": torch.zeros(4), "a.bias": torch.zeros(1), "b.weight": torch.ones(2)}
    merged = {"a.weight": torch.tensor([1.0, -1, 2, 0]), "a.bias": torch.tensor([1.0]), "b.weight": torch.ones(2)}
    expert = {"a.weight": torch.tensor([-1.0, -1, -2, 5]), "a.bias": torch.tensor([1.0]), "b.weight": torch.zeros(2)}
    found = conflicts(base, merged, expert)
    assert found == {"a": (2, 4), "b": (0, 0)}
    assert shares(found) == {"a": 0.5, "b": 0.0}


def test_a_task_in_conflict_stays_apart_and_answers_as_its_expert() -> None:
    settings = {"conflict": 0.0, "excess": 0.0, "training": "independent"}
    experts = []
    for event, *found in learned("magmax", method_settings=settings, steps=60):
        learner, running, stream = found
        if isinstance(event, TaskDone):
            task = event.task
            answers = accuracy(learner, running, task, task.test), accuracy(learner, Naive(), task, task.test)
            experts.append((task.index, *answers))
    kept = sorted(map(int, running.apart.weights))
    assert kept
    assert 0 not in kept
    assert running.measures()["tasks_kept_apart"] == kept
    assert all(merged == alone for index, merged, alone in experts if index in kept)
    # Told the task, it still answers so when all are over.
    for index, _, alone in experts:
        if index in kept:
            assert accuracy(learner, running, stream.tasks[index], stream.tasks[index].test) == alone


def test_after_a_task_that_stays_apart_training_goes_on_from_the_one_before() -> None:
    model = {"name": "convnet", "channels": [4]}
    settings = {"conflict": 0.0, "excess": 0.0}
    begun, experts, _, running, _ = whole("magmax", method_settings=settings, model=model, tasks=5, steps=60, lr=0.05)
    apart = {int(index) for index in running.apart.weights}
    assert apart & {1, 2, 3}
    merged = [index for index in range(5) if index not in apart]
    for index in range(1, 5):
        before = max(each for each in merged if each < index)
        moved = {name: each for name, each in begun[index].items() if each.is_floating_point()}
        torch.testing.assert_close(moved, {name: experts[before][name] for name in moved}, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["merge", "model-soup"])
def test_a_merge_is_not_chosen_by_samples_of_tasks_that_stay_apart(method: str) -> None:
    settings = {"conflict": 0.0, "excess": 0.0, "distill_epochs": 1}
    more = {"scale": "auto"} if method == "merge" else {}
    *_, running, _ = whole(method, method_settings={**settings, **more}, steps=60, validation=0.2)
    apart = {int(index) for index in running.apart.weights}
    assert apart
    assert set(running.memory.groups.tolist()) == {0, 1, 2} - apart
    assert set(running.memory.columns["tasks"][: len(running.memory)].tolist()) == {0, 1, 2} - apart


def test_no_task_stays_apart_where_merging_costs_little() -> None:
    *_, running, _ = whole("magmax", method_settings={"conflict": 0.0, "excess": 1000.0})
    assert not running.apart.weights


def test_a_sample_whose_task_is_not_told_goes_where_the_nearest_prototype_says() -> None:
    settings = {"conflict": 0.0, "excess": 0.0}
    *_, learner, running, stream = whole("magmax", stream="permuted", scenario="domain", method_settings=settings)
    assert running.apart.weights
    inputs = torch.cat([task.test.ready(learner.device).batch(torch.arange(20))[0] for task in stream.tasks])
    with torch.no_grad(), evaluating(learner.model):
        routed = running.logits(learner, inputs, 0)
        features = F.normalize(running._base_features(learner, inputs), dim=1)
        keys = torch.stack([running.prototype(learner, task) for task in stream.tasks])
        where = (features @ F.normalize(keys, dim=1).T).argmax(1)
        for row, index in enumerate(where.tolist()):
            own = running.apart.weights.get(str(index), {**running.merged, **running.buffers})
            expected = torch.func.functional_call(learner.model, own, (inputs[row : row + 1], 0))
            torch.testing.assert_close(routed[row : row + 1], expected, rtol=1e-4, atol=1e-5)
    assert len(where.unique()) > 1


def test_answers_come_back_in_the_order_of_the_samples() -> None:
    tasks = torch.tensor([2, 0, 2, 1, 0])
    found = answered(tasks, lambda task, rows: 10 * task + rows.unsqueeze(1).float())
    assert found.flatten().tolist() == [20, 1, 22, 13, 4]
    routes = Routes()
    for prototype in ([1.0, 0.0], [0.0, 2.0]):
        routes.meet(torch.tensor(prototype))
    assert routes.nearest(torch.tensor([[5.0, 1.0], [0.1, 0.2]])).tolist() == [0, 1]


def test_the_soup_is_the_average_of_its_ingredients() -> None:
    _, experts, _, running, _ = whole("model-soup", validation=0.3)
    assert isinstance(running, ModelSoup)
    assert running.ingredients
    for name, each in running.merged.items():
        mean = torch.stack([experts[index][name] for index in running.ingredients]).mean(0)
        torch.testing.assert_close(each, mean)


def test_learned_coefficients_make_the_merge() -> None:
    begun, experts, _, running, _ = whole("adamerging", method_settings={"steps": 20, "samples": 8})
    assert isinstance(running, AdaMerging)
    assert len(running.memory) == 24
    for name, each in running.merged.items():
        assert running.coefficients[name] != [0.3] * 3
        total: Tensor = sum(
            weight * (expert[name] - begun[0][name])
            for weight, expert in zip(running.coefficients[name], experts, strict=True)
        )
        torch.testing.assert_close(each, begun[0][name] + total, rtol=1e-4, atol=1e-6)


def divergences(scenario: str, epochs: int) -> tuple[float, float]:
    """How far the merge after two tasks is from the second expert, and from who is asked of old outputs.

    That is the merge before it, or itself as it is made, where outputs are shared.
    """
    settings = {"distill_epochs": epochs, "distill_rate": 3e-3, "scale": 0.5}
    for event, *found in learned("magmax", tasks=2, scenario=scenario, method_settings=settings):
        learner, running, stream = found
        if isinstance(event, TaskStarted) and event.task.index == 1:
            before = {**running.merged, **running.buffers}
    inputs = stream.tasks[1].train.ready(torch.device("cpu")).batch(torch.arange(60))[0]
    after = {**running.merged, **running.buffers}
    if scenario == "domain":
        before = {**running.kept.merged(running.base), **running.buffers}
    with torch.no_grad(), evaluating(learner.model):
        new, old = (slice(5, 10), slice(0, 5)) if scenario == "class" else (slice(None), slice(None))
        heads = (1, 0) if scenario == "task" else (1, 1)
        pairs = [
            (functional_call(learner.model, after, (inputs, head))[:, part], answered_by[:, part])
            for head, part, answered_by in (
                (heads[0], new, learner.model(inputs, heads[0])),
                (heads[1], old, functional_call(learner.model, before, (inputs, heads[1]))),
            )
        ]
    own, earlier = (float(divergence(student, (teacher / 2).softmax(1), 2.0)) for student, teacher in pairs)
    return own, earlier


# Where tasks share their outputs no answer can be that of both teachers, and the merge begins as one of them.
@pytest.mark.parametrize(("scenario", "share"), [("task", 0.6), ("class", 0.6), ("domain", 0.9)])
def test_distillation_brings_the_merge_nearer_to_its_teachers(scenario: str, share: float) -> None:
    plain, taught = divergences(scenario, 0), divergences(scenario, 20)
    assert sum(taught) < share * sum(plain)


def test_a_first_task_is_taught_by_its_expert_alone() -> None:
    settings = {"distill_epochs": 200, "distill_rate": 3e-3, "scale": 0.5}
    *_, learner, running, stream = whole("magmax", tasks=1, method_settings=settings)
    inputs = stream.tasks[0].train.ready(torch.device("cpu")).batch(torch.arange(60))[0]
    with torch.no_grad():
        taught = functional_call(learner.model, running.merged, (inputs, 0)).softmax(1)
        torch.testing.assert_close(taught, learner.model(inputs, 0).softmax(1), atol=0.02, rtol=0)


def test_what_a_run_leaves_is_the_merge_and_what_it_found(tmp_path: Path) -> None:
    words = "--stream split --scenario class --tasks 3 --steps 5 --method merge --method.rule ties --model.hidden 8"
    assert main(["run", *words.split(), "--method.rule_settings.density", "0.5", "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["settings"]["rule_settings"] == {"density": 0.5}
    found = result["merging"]
    assert len(found["expert_accuracy"]) == 3
    assert all(len(each) == 2 and 0 <= min(each) <= max(each) <= 1 for each in found["sign_conflict"].values())
    assert len(found["sign_conflict"]) == 1
    left = load_file(tmp_path / "run" / "model.safetensors")
    _, _, learner, running, _ = whole(
        "merge",
        scenario="class",
        steps=5,
        model={"name": "mlp", "hidden": [8]},
        train_samples=None,
        batch_size=128,
        lr=1e-3,
        method_settings={"rule": "ties", "rule_settings": {"density": 0.5}},
    )
    torch.testing.assert_close({name: left[name] for name in running.merged}, running.merged)
    assert any((left[name] != each).any() for name, each in tree.weights(learner.model).items())


def test_experts_are_put_into_a_pool_and_merge_there_as_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"pool": str(tmp_path / "pool")}
    *_, learner, running, stream = whole("magmax", method_settings=settings)
    pool = Pool(tmp_path / "pool")
    assert [member.task["name"] for member in pool.members.values()] == [task.name for task in stream.tasks]
    torch.testing.assert_close(pool.merge("magmax", scale=0.5), running.merged)
    whole("magmax", method_settings=settings)  # again: the same experts, replaced
    assert len(Pool(tmp_path / "pool").members) == 3
    last = list(pool.members)[-1]
    capsys.readouterr()
    assert main(["pool", "list", settings["pool"]]) == 0
    assert f", task {stream.tasks[-1].name}\n3 experts" in capsys.readouterr().out
    assert pool.nearest(running.prototype(learner, stream.tasks[-1]))[0] == (last, pytest.approx(1))
    with pytest.raises(InputError, match="is of another base"):
        whole("magmax", method_settings=settings, seed=1)


def test_a_merge_of_a_pool_is_a_network_that_a_run_begins_from(tmp_path: Path) -> None:
    network = {"model": {"name": "convnet", "channels": [4, 8]}}
    whole("magmax", tasks=2, method_settings={"pool": str(tmp_path / "pool")}, **network)
    pool = Pool(tmp_path / "pool")
    merged = pool.merge("linear")
    experts = [pool.expert(name)["trunk.1.running_mean"] for name in pool.members]
    torch.testing.assert_close(merged["trunk.1.running_mean"], torch.stack(experts).mean(0))
    save_file(merged, tmp_path / "merged.safetensors")
    made = recipe(values("naive", weights=str(tmp_path / "merged.safetensors"), **network))
    start = build.learner(made, build.stream(made))
    for name, each in start.model.trunk.state_dict().items():
        torch.testing.assert_close(each, merged[f"trunk.{name}"], rtol=0, atol=0)


def test_a_pool_that_cannot_take_the_experts_is_refused_before_any_is_trained(tmp_path: Path) -> None:
    def refused(says: str, pool: Path, **more: Any) -> None:
        events = learned("magmax", method_settings={"pool": str(pool)}, **more)
        with pytest.raises(InputError, match=says):
            next(events)

    weights = tmp_path / "weights"
    learner = build.learner(made := recipe(values("naive")), build.stream(made))
    save_file({name: each for name, each in learner.model.state_dict().items() if "trunk" in name}, weights)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "some.txt").write_text("mine")
    refused("exists and is not empty", tmp_path / "notes")
    whole("magmax", tasks=1, weights=str(weights), method_settings={"pool": str(tmp_path / "pool")})
    refused("has 'task 1 .*' of another run", tmp_path / "pool", weights=str(weights), tasks=1, seed=1)


@pytest.mark.parametrize("exemplars", [0, 5, 1000])
@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_answers_by_class_means_in_the_merged_network(scenario: str, exemplars: int) -> None:
    settings = {"answers": "class-means", "exemplars": exemplars}
    kind = "permuted" if scenario == "domain" else "split"
    means: list[list[Tensor]] = []  # after each task, of each class of all tasks so far, by all their samples
    for event, learner, running, stream in learned(
        "avg-sequential", scenario=scenario, stream=kind, method_settings=settings
    ):
        if isinstance(event, TaskDone):
            means.append([])
            for task in stream.tasks[: event.task.index + 1]:
                ready = task.train.ready(learner.device)
                found = F.normalize(merged_features(learner, running, ready.batch(torch.arange(len(ready)))[0]), dim=1)
                means[-1] += [F.normalize(found[ready.targets == label].mean(0), dim=0) for label in task.classes]
    classes = [len(task.classes) for task in stream.tasks]
    of_task = [torch.stack(each) for each in (means[-1][sum(classes[:j]) : sum(classes[: j + 1])] for j in range(3))]
    if exemplars == 0:  # as they were after their task
        of_task = [torch.stack(means[j][-classes[j] :]) for j in range(3)]
    assert len(running.means.memory) == sum(
        min(exemplars, int((task.train.targets == label).sum())) for task in stream.tasks for label in task.classes
    )
    for task in stream.tasks:
        inputs = task.test.ready(learner.device).batch(torch.arange(30))[0]
        with torch.no_grad(), evaluating(learner.model):
            answers = running.logits(learner, inputs, task.index)
        keys = of_task[task.index]
        if scenario != "task":
            keys = torch.cat(of_task) if scenario == "class" else torch.stack(of_task).sum(0)
        expected = 30 * F.normalize(merged_features(learner, running, inputs), dim=1) @ F.normalize(keys, dim=1).T
        if exemplars == 5:  # of a few samples the means are near, and of those of the last task all were there
            assert float((answers - expected).abs().max()) > 1e-3 or task.index == 2
            assert float(F.cosine_similarity(answers, expected, dim=1).min()) > 0.9
        else:
            torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-4)


def merged_features(learner: Learner, running: Merging, inputs: Tensor) -> Tensor:
    weights = {**running.merged, **running.buffers}
    trunk = {name.removeprefix("trunk."): each for name, each in weights.items() if name.startswith("trunk.")}
    with torch.no_grad(), evaluating(learner.model):
        found: Tensor = functional_call(learner.model.trunk, trunk, (inputs,))
    return found


def test_class_means_are_of_one_merge() -> None:
    with pytest.raises(InputError, match="answers = class-means are of one merge, and conflict lets tasks stay apart"):
        whole("magmax", method_settings={"answers": "class-means", "conflict": 0.1})


def test_normalised_accuracy_is_the_mean_share_of_the_experts() -> None:
    matrix = np.array([[0.0, 0.0], [0.9, 0.1], [0.6, 0.4]])
    assert normalised_accuracy(matrix, [0.8, 0.4]) == pytest.approx((0.75 + 1) / 2)
    assert normalised_accuracy(matrix, [0.8, 0.0]) is None
