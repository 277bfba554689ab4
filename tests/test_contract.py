"""What every method owes, under every scenario, on the built-in digits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lifelong import settings
from lifelong.experiments import build
from lifelong.experiments.recipe import Recipe, differences, recipe, record
from lifelong.experiments.run import Evaluated, Every, Finished, events
from lifelong.methods import METHODS
from lifelong.streams import Scenario
from lifelong.training import evaluation, loop, state
from lifelong.training.loop import Step, TaskDone

NAMES = [*METHODS, "ewc+lwf"]
SCENARIOS = ["task", "domain", "class"]
IMPORTANCE = [name for name, kind in METHODS.items() if kind.family == "importance"]
STREAMING = [name for name, kind in METHODS.items() if kind.family == "streaming"]
FOLDING = [name for name, kind in METHODS.items() if kind.family == "merging" and not kind.grows]
TASKS, STEPS = 3, 7
# Learning coefficients takes most of the time of a short run.
SMALL = {"adamerging": {"steps": 3}}


def can(method: str, scenario: str) -> bool:
    return all(scenario in METHODS[part].scenarios for part in method.split("+"))


def some_scenario(method: str) -> str:
    return next(scenario for scenario in SCENARIOS if can(method, scenario))


PAIRS = [(name, scenario) for name in NAMES for scenario in SCENARIOS if can(name, scenario)]


def values(method: str = "naive", scenario: str = "domain", seed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "stream": "permuted" if scenario == "domain" else "split",
        "data": "digits",
        "scenario": scenario,
        "tasks": TASKS,
        "method": method,
        "method_settings": SMALL.get(method, {}),
        "model": {"name": "mlp", "hidden": [16], "dropout": 0.2},
        "train_samples": 60,
        "batch_size": 16,
        "steps": STEPS,
        "device": "cpu",
        "threads": 1,
        "seed": seed,
        **more,
    }


def strengths(method: str, strength: float) -> dict[str, Any]:
    parts = method.split("+")
    return {"strength": strength} if len(parts) == 1 else {part: {"strength": strength} for part in parts}


def has_strength(method: str) -> bool:
    return all("strength" in {field.name for field in settings.fields(METHODS[part])} for part in method.split("+"))


def steps_of(method: str) -> int:
    """Steps of a whole run: those methods make none after the first task, whose samples they only sum up."""
    return STEPS if method in STREAMING else TASKS * STEPS


@dataclass(frozen=True)
class Outcome:
    """What two runs that are the same have in common to the bit."""

    accuracy: list[list[float]]
    model: bytes


def outcome(out: Path) -> Outcome:
    return Outcome(json.loads((out / "result.json").read_text())["accuracy"], (out / "model.safetensors").read_bytes())


def finished(made: Recipe, out: Path) -> Outcome:
    for _ in events(made, out):
        pass
    return outcome(out)


Uninterrupted = Callable[..., Outcome]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """Outcomes of whole runs, each run once."""
    known: dict[str, Outcome] = {}

    def run(**more: Any) -> Outcome:
        key = json.dumps(more, sort_keys=True)
        if key not in known:
            known[key] = finished(recipe(values(**more)), tmp_path_factory.mktemp("whole") / "run")
        return known[key]

    return run


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One thread, and no waiting for the disk: no power fails here."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("method", "scenario"), [pair for pair in PAIRS if has_strength(pair[0])])
def test_strength_zero_is_naive(method: str, scenario: str, tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    none = finished(recipe(values(method, scenario, method_settings=strengths(method, 0.0))), tmp_path / "run")
    assert none == uninterrupted(method="naive", scenario=scenario)


@pytest.mark.parametrize(("method", "scenario"), [pair for pair in PAIRS if has_strength(pair[0])])
def test_strength_has_an_effect(method: str, scenario: str, uninterrupted: Uninterrupted) -> None:
    strong = uninterrupted(method=method, scenario=scenario, method_settings=strengths(method, 50.0))
    assert strong.model != uninterrupted(method="naive", scenario=scenario).model


@pytest.mark.parametrize(("method", "scenario"), PAIRS)
def test_the_seed_is_all_that_is_drawn(
    method: str, scenario: str, tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    torch.manual_seed(99)
    torch.rand(3)  # what was drawn before the run is no matter
    again = finished(recipe(values(method, scenario)), tmp_path / "again")
    other = finished(recipe(values(method, scenario, seed=1)), tmp_path / "other")
    first = uninterrupted(method=method, scenario=scenario)
    assert again == first
    assert other.model != first.model


def interrupted(made: Recipe, out: Path, after: int, every: int = 3) -> Outcome:
    """The outcome of a run that is stopped after so many steps and then resumed."""
    running = events(made, out, checkpoint_every=Every(steps=every, seconds=None))
    steps = 0
    for event in running:
        steps += type(event) is Step
        if steps == after:
            break
    running.close()
    assert not (out / "result.json").exists()
    # What was drawn meanwhile is no matter.
    torch.manual_seed(1234)
    resumed = events(made, out, resume=True, checkpoint_every=Every(steps=every, seconds=None))
    done = sum(type(event) is Step for event in resumed)
    # It went on from within the task, and not from the task's start or from the very beginning.
    assert 0 < done < steps_of(made.method) - after + every
    return outcome(out)


@pytest.mark.parametrize(("method", "scenario"), PAIRS)
def test_resumed_in_the_middle_of_a_task(
    method: str, scenario: str, tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    # Step 5 of the second task, or of the only one with steps: the last checkpoint is that of its step 3.
    after = 5 if method in STREAMING else STEPS + 5
    resumed = interrupted(recipe(values(method, scenario)), tmp_path / "run", after)
    assert resumed == uninterrupted(method=method, scenario=scenario)


@pytest.mark.parametrize("method", NAMES)
def test_resumed_between_tasks(method: str, tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    made, begun = recipe(values(method, some_scenario(method))), 0
    running = events(made, tmp_path / "run")
    for event in running:
        begun += isinstance(event, loop.TaskStarted)
        if begun == TASKS:
            break
    running.close()
    torch.manual_seed(1234)
    rest = list(events(made, tmp_path / "run", resume=True))
    assert sum(isinstance(event, TaskDone) for event in rest) == 1
    assert outcome(tmp_path / "run") == uninterrupted(method=method, scenario=some_scenario(method))


@pytest.mark.parametrize("after", [5, STEPS + 2, 2 * STEPS + 6])
@pytest.mark.parametrize("method", ["si", "rwalk", "feature-extraction", "ewc+lwf"])
def test_resumed_anywhere(method: str, after: int, tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    resumed = interrupted(recipe(values(method, "task")), tmp_path / "run", after, every=2)
    assert resumed == uninterrupted(method=method, scenario="task")


@pytest.mark.parametrize(
    "more",
    [
        {"keep_optimizer": True},
        {"optimizer": {"name": "sgd", "momentum": 0.9}, "lr": 0.1, "keep_optimizer": True},
        {"schedule": "cosine", "warmup": 0.2, "clip": 0.5},
        {"schedule": "linear", "keep_optimizer": True},
        {"validation": 0.3, "early_stopping": 1},
        {"standardize": True, "precision": "bf16"},
        {"model": {"name": "convnet", "channels": [4, 4]}},
        {"flip": True, "crop": 1},
    ],
    ids=[
        "adam kept",
        "momentum kept",
        "cosine and clip",
        "linear, kept",
        "early stopping",
        "bf16",
        "batch norm",
        "augmented",
    ],
)
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_resumed_under_other_settings(
    more: dict[str, Any], scenario: str, tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    # Batch norm in a stream of images; early stopping may end tasks, so the stop is in the first one.
    after = 5 if "early_stopping" in more else STEPS + 5
    resumed = interrupted(recipe(values("ewc+lwf", scenario, **more)), tmp_path / "run", after)
    assert resumed == uninterrupted(method="ewc+lwf", scenario=scenario, **more)


@pytest.mark.parametrize("method", [*IMPORTANCE, *STREAMING, *FOLDING, "merge", "lwf", "ewc+lwf"])
def test_state_does_not_grow_with_tasks(method: str) -> None:
    sizes = []
    for tasks in (3, 6):
        running = list(events(recipe(values(method, "domain", tasks=tasks, steps=2))))
        assert isinstance(running[-1], Finished)
        sizes.append(running[-1].result["memory"]["method_bytes"])
    assert sizes[0] == sizes[1] > 0


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("method", NAMES)
def test_device_and_dtype_are_kept(method: str, precision: str) -> None:
    made = recipe(values(method, some_scenario(method), steps=2, precision=precision))
    stream, kept = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    for _ in loop.train(learner, kept, stream, build.schedule(made)):
        pass
    tensors: dict[str, Tensor] = {}
    state.capture(kept, "method", tensors)
    everything = [*tensors.values(), *learner.model.state_dict().values()]
    # Sums that must not depend on the order of the samples are wide, whatever the network is.
    wide = tensors.values() if method in STREAMING else []
    assert {each.dtype for each in wide if each.is_floating_point()} <= {torch.float64}
    narrow = everything[len(wide) :]
    assert {each.dtype for each in narrow if each.is_floating_point()} == {torch.float32}
    assert {each.device for each in everything} == {learner.device}
    assert not any(each.requires_grad for each in tensors.values())
    assert all(each.isfinite().all() for each in everything)


@pytest.mark.parametrize(("method", "scenario"), PAIRS)
def test_state_is_restored_to_the_bit(method: str, scenario: str) -> None:
    made = recipe(values(method, scenario, steps=3))
    stream, kept = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    for event in loop.train(learner, kept, stream, build.schedule(made)):
        if isinstance(event, TaskDone) and event.task.index == 1:
            break
    tensors: dict[str, Tensor] = {}
    saved = state.capture(kept, "method", tensors)
    fresh = build.method(made)
    state.restore(fresh, json.loads(json.dumps(saved)), "method", tensors, learner.device)
    again: dict[str, Tensor] = {}
    assert state.capture(fresh, "method", again) == saved
    torch.testing.assert_close(again, tensors, rtol=0, atol=0)
    assert state.method_bytes(fresh) == state.method_bytes(kept)


@pytest.mark.parametrize("method", NAMES)
def test_consolidating_leaves_the_learner_as_it_was(method: str) -> None:
    made = recipe(values(method, some_scenario(method), steps=2, model={"name": "convnet", "channels": [4]}))
    stream, kept = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    before: dict[str, Any] = {}
    for event in loop.train(learner, kept, stream, build.schedule(made)):
        surface = {
            "modes": [module.training for module in learner.model.modules()],
            "live": [parameter.requires_grad for parameter in learner.model.parameters()],
            "values": {name: each.clone() for name, each in learner.model.state_dict().items()},
        }
        if isinstance(event, loop.StepsDone):
            before = surface
        if isinstance(event, TaskDone):
            assert surface["modes"] == before["modes"]
            assert surface["live"] == before["live"]
            torch.testing.assert_close(surface["values"], before["values"], rtol=0, atol=0)


SET: list[dict[str, Any]] = [
    {},
    {"stream": "rotated", "angles": [0.0, 12.5, 90.0], "pad": 2, "train_samples": None, "seed": 7},
    {"classes_per_task": [2, 3, 5], "shuffle_classes": True, "head": "growing", "validation": 0.25},
    {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}, "lr": 0.03, "schedule": "cosine", "warmup": 0.1},
    {"validation": 0.1, "early_stopping": 3, "evaluate_on": "validation", "clip": 1.5, "keep_optimizer": True},
    {"stream": "domains", "data": "digits,other", "target": "label", "image_size": 28, "precision": "bf16"},
]


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("more", SET, ids=range(len(SET)))
def test_recipes_survive_their_record(method: str, more: dict[str, Any]) -> None:
    chosen = strengths(method, 0.25) if has_strength(method) else {}
    made = recipe({**values(method, some_scenario(method)), "method_settings": chosen, **more})
    assert recipe(record(made)) == made
    assert recipe(json.loads(json.dumps(record(made)))) == made
    assert made.method_settings == chosen


def test_a_setting_that_is_newer_than_a_record_has_its_default_there() -> None:
    made = recipe(values(lr=0.5))
    older = {key: each for key, each in record(made).items() if key != "clip"}
    assert differences(record(made), older) == []
    assert differences(record(recipe(values(lr=0.5, clip=1.0))), older) == ["clip"]


def test_a_record_is_what_json_makes_of_it() -> None:
    # A run is resumed where the record in its folder is that of the recipe, and a user of Python may write tuples.
    made = recipe(values(model={"name": "mlp", "hidden": (16, 8)}))
    assert record(made) == json.loads(json.dumps(record(made)))


@pytest.mark.parametrize("method", NAMES)
def test_every_setting_of_a_method_reaches_it(method: str) -> None:
    chosen = strengths(method, 0.25) if has_strength(method) else {}
    made = recipe(values(method, some_scenario(method), method_settings=chosen))
    built = build.method(recipe(record(made)))
    parts = built.methods.values() if "+" in method else [built]
    for part in parts:
        assert not has_strength(method) or part.strength == 0.25


def test_a_run_yields_a_row_of_the_matrix_before_and_after_each_task() -> None:
    rows = [event for event in events(recipe(values(steps=2))) if isinstance(event, Evaluated)]
    assert [row.learned for row in rows] == [0, 1, 2, 3]
    assert all(len(row.accuracy) == TASKS and all(0 <= each <= 1 for each in row.accuracy) for row in rows)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("measure", ["accuracy", "needs_task_id"])
def test_evaluation_leaves_modes_as_they_were(training: bool, measure: str) -> None:
    made = recipe(values(model={"name": "convnet", "channels": [4, 4]}))
    stream, method = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    learner.model.train(training)
    # A frozen part stays in evaluation mode while the rest is in training.
    frozen = next(module for module in learner.model.modules() if isinstance(module, nn.BatchNorm2d))
    frozen.eval()
    before = [module.training for module in learner.model.modules()]
    values_before = {name: each.clone() for name, each in learner.model.state_dict().items()}
    if measure == "accuracy":
        evaluation.accuracy(learner, method, stream.tasks[0], stream.tasks[0].test)
    else:
        evaluation.needs_task_id(learner, method, stream.tasks)
    torch.testing.assert_close(dict(learner.model.state_dict()), values_before, rtol=0, atol=0)
    assert [module.training for module in learner.model.modules()] == before


def test_scenarios_are_those_of_the_library() -> None:
    assert {each.value for each in Scenario} == set(SCENARIOS)
