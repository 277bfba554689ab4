"""Which task a sample seems to come from, against a slow reference, and what knowing it is worth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lifelong import tree
from lifelong.errors import InputError
from lifelong.experiments import build
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import run
from lifelong.learner import Learner
from lifelong.methods import TaskInference
from lifelong.streams import Stream
from lifelong.training.loop import TaskDone, train
from lifelong.tree import Params


def values(method: str, **more: Any) -> dict[str, Any]:
    return {
        "stream": "split",
        "data": "digits",
        "scenario": "class",
        "tasks": 5,
        "method": method,
        "model": {"name": "mlp", "hidden": [64]},
        "epochs": 5,
        "batch_size": 16,
        "lr": 5e-3,
        "threads": 1,
        "device": "cpu",
        **more,
    }


def trained(**more: Any) -> tuple[TaskInference, Learner, Stream, Params, list[torch.Tensor]]:
    """What is known at the end, the weights at the beginning, and the first task's features each time."""
    made = recipe(values("task-inference", **more))
    stream, method = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    assert isinstance(method, TaskInference)
    start, inputs = tree.snapshot(tree.weights(learner.model.trunk)), stream.tasks[0].test.batch(torch.arange(40))[0]
    seen = []
    for event in train(learner, method, stream, build.schedule(made)):
        if isinstance(event, TaskDone):
            seen.append(method._features(learner, inputs))
    return method, learner, stream, start, seen


def test_prototypes_are_mean_directions_of_what_the_network_saw_in_a_class_at_first() -> None:
    method, learner, stream, start, seen = trained()
    torch.testing.assert_close(seen[-1], seen[0], rtol=0, atol=0)  # the features never drift

    def features(inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.func.functional_call(learner.model.trunk, start, (inputs,)).double()

    prototypes, owners = [], []
    for task in stream.tasks:
        inputs, targets = task.train.batch(torch.arange(len(task.train)))
        for label in targets.unique():
            rows = features(inputs[targets == label])
            prototypes.append((rows / rows.norm(dim=1, keepdim=True)).mean(0))
            owners.append(task.index)
    for task in stream.tasks:
        inputs, _ = task.test.batch(torch.arange(30))
        expected = []
        for row in features(inputs):
            cosines = [float(F.cosine_similarity(row, each, dim=0)) for each in prototypes]
            expected.append(owners[cosines.index(max(cosines))])
        assert method.tasks_of(learner, inputs).tolist() == expected


def test_answers_are_among_the_classes_of_that_task() -> None:
    method, learner, stream, *_ = trained(tasks=3)
    inputs, _ = stream.tasks[1].test.batch(torch.arange(50))
    with torch.no_grad():
        plain = learner.model(inputs, 0)
        logits = method.restrict(learner, inputs, method.logits(learner, inputs, 0))
    sizes = [len(task.classes) for task in stream.tasks]
    for row, answer, task in zip(logits, plain, method.tasks_of(learner, inputs).tolist(), strict=True):
        own = slice(sum(sizes[:task]), sum(sizes[: task + 1]))
        torch.testing.assert_close(row[own], answer[own], rtol=0, atol=0)
        assert int(row.isinf().sum()) == 10 - sizes[task]


@pytest.mark.parametrize("chain", ["naive+task-inference", "task-inference+magmax", "ewc+task-inference"])
def test_it_recovers_most_of_what_forgetting_confuses(chain: str) -> None:
    without = chain.replace("+task-inference", "").replace("task-inference+", "")
    plain, told = (run(recipe(values(method)))["average_accuracy"] for method in (without, chain))
    assert told > plain + 0.2
    assert told > 0.6


def test_where_the_task_is_told_there_is_nothing_to_infer() -> None:
    with pytest.raises(InputError, match="task-inference"):
        run(recipe(values("naive+task-inference", scenario="task")))
