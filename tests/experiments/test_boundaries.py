"""Streams in which a learner is not told where a task ends, and who may learn them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lifelong
from lifelong.errors import InputError
from lifelong.experiments import build
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import Every, Finished, events
from lifelong.methods import METHODS
from lifelong.models.heads import SingleHead
from lifelong.streams import Scenario, blurry
from lifelong.training.loop import Step

QUICK = {"stream": "blurry", "tasks": 3, "train_samples": 60, "batch_size": 16, "device": "cpu", "threads": 1}
ABLE = {name: kind.boundaries_unless for name, kind in METHODS.items() if not kind.boundaries or kind.boundaries_unless}


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if Scenario.CLASS in kind.scenarios])
def test_who_needs_boundaries_is_refused_before_any_data_is_read(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load", lambda *_, **__: pytest.fail("data was read"))
    kind = METHODS[method]
    if kind.boundaries:
        with pytest.raises(InputError, match=f"^method {method} needs to know where a task ends, and stream blurry"):
            next(events(recipe({**QUICK, "method": method})))
    if not kind.boundaries or kind.boundaries_unless:
        build.method(recipe({**QUICK, "method": method, "method_settings": dict(kind.boundaries_unless)}))


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if Scenario.CLASS not in kind.scenarios])
def test_who_must_be_told_the_task_is_refused_for_the_scenario(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load", lambda *_, **__: pytest.fail("data was read"))
    with pytest.raises(InputError, match=f"^method {method} cannot do scenario class: it can do task"):
        next(events(recipe({**QUICK, "method": method})))


@pytest.mark.parametrize("method", list(ABLE))
def test_who_can_do_without_learns_all_classes(method: str) -> None:
    settings = {**QUICK, "blur": 0.3, "model_settings": {"hidden": [32]}, "epochs": 8, "lr": 0.01}
    [*_, last] = events(recipe({**settings, "method": method, "method_settings": dict(ABLE[method])}))
    assert isinstance(last, Finished)
    assert last.result["average_accuracy"] > 0.15  # chance is a tenth
    assert last.result["stream"] == "blurry"


def test_a_chain_can_do_what_all_its_parts_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS["ewc"], "scenarios", (Scenario.TASK,))
    with pytest.raises(InputError, match="method ewc cannot do scenario domain: it can do task"):
        build.method(recipe({"method": "naive+ewc", "scenario": "domain"}))
    assert build.method(recipe({"method": "naive+ewc", "stream": "split", "scenario": "task"}))


def test_a_stream_made_in_python_says_it_too() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.rand(40, 3, generator=generator), torch.arange(40) % 4
    stream = blurry(lifelong.from_tensors((inputs, targets), (inputs, targets)), tasks=2)
    with pytest.raises(InputError, match="method ewc needs to know where a task ends, and stream blurry"):
        lifelong.run(stream=stream, method="ewc", device="cpu")
    assert len(lifelong.run(stream=stream, method="naive", device="cpu")["accuracy"]) == 3


def test_the_head_has_all_classes_from_the_start_and_masks_none() -> None:
    made = recipe({**QUICK, "method": "naive"})
    stream = build.stream(made)
    learner = build.learner(made, stream)
    assert isinstance(learner.model.head, SingleHead)
    inputs, _ = stream.tasks[0].train.ready(learner.device).batch(torch.arange(2))
    assert learner.model(inputs, 0).shape == (2, 10)
    assert learner.model(inputs, 0).isfinite().all()
    assert stream.scenario is Scenario.CLASS


@pytest.mark.parametrize("stop", [4, 9])
def test_online_importance_resumes_to_the_bit(stop: int, tmp_path: Any) -> None:
    settings = {"online": True, "interval": 3, "strength": 50.0}
    made = recipe({**QUICK, "method": "mas", "method_settings": settings, "steps": 5})
    whole = [event for event in events(made, tmp_path / "whole") if isinstance(event, Finished)]
    running, steps = events(made, tmp_path / "cut", checkpoint_every=Every(steps=2, seconds=None)), 0
    for event in running:
        steps += isinstance(event, Step)
        if steps == stop:
            break
    running.close()
    resumed = list(events(made, tmp_path / "cut", resume=True))
    assert sum(isinstance(event, Step) for event in resumed) < 15 - stop + 3
    assert resumed[-1].result["accuracy"] == whole[0].result["accuracy"]
    weights = [(tmp_path / each / "model.safetensors").read_bytes() for each in ("whole", "cut")]
    assert weights[0] == weights[1]
