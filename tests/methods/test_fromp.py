"""Functional regularisation of the memorable past, against explicit Jacobians and brute force in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from methods import made_up
from reference.curvature import loop_jacobian
from torch import Tensor, nn

from lifelong import tree
from lifelong.learner import Batch, Learner
from lifelong.methods import FROMP
from lifelong.methods.fromp import inverse, memorable
from lifelong.models import Network
from lifelong.streams import Scenario, Stream
from lifelong.training import loop
from lifelong.training.loop import Schedule, Step, StepsDone, TaskStarted
from lifelong.training.optimizers import make_optimizer
from lifelong.tree import Params

SAMPLES, FEATURES, CLASSES, JITTER = 30, 4, 3, 1e-6


def stream(scenario: Scenario) -> Stream:
    return made_up.stream(scenario, samples=SAMPLES, features=FEATURES, classes=CLASSES)


def network(scenario: Scenario) -> Network:
    def trunk() -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Dropout(0.3))

    return made_up.network(scenario, trunk, features=FEATURES, classes=CLASSES)


def third_task(
    scenario: Scenario, at: type, *, lr: float = 0.05, steps: int = 6, **settings: Any
) -> tuple[FROMP, Learner, Stream, list[Params]]:
    """FROMP at an event of the third task, and the weights after the first two."""
    learner = Learner(network(scenario), make_optimizer("adam", lr, {}), scenario, seed=3, planned_tasks=3)
    method, tasks, ends = FROMP(**{"per_class": 2, **settings}), stream(scenario), []
    torch.manual_seed(4)
    for event in loop.train(learner, method, tasks, Schedule(batch_size=10, steps=steps)):
        if event.task.index == 2 and type(event) is at:
            break
        if isinstance(event, StepsDone):
            ends.append(tree.snapshot(learner.params))
    return method, learner, tasks, ends


def probabilities(learner: Learner, inputs: Tensor, task: int) -> Tensor:
    learner.model.eval()
    answers: Tensor = learner.model(inputs, task).softmax(1)
    return answers


def slow_ggn(learner: Learner, ends: list[Params], tasks: Stream) -> Params:
    """`sum_n J_n^T (diag(p) - p p^T) J_n` on the diagonal, over the samples of each task at the weights after it.

    Heads that came later are not in play then: the answer is cut to what there was.
    """
    now, model = tree.snapshot(learner.params), learner.model
    total = {name: torch.zeros_like(each) for name, each in now.items()}
    for index, end in enumerate(ends):
        tree.copy_({name: model.get_parameter(name) for name in end}, end)
        outputs = CLASSES * (index + 1) if learner.scenario is Scenario.CLASS else CLASSES
        inputs = tasks.tasks[index].train.inputs
        jacobian = loop_jacobian(model.eval(), lambda x, i=index, k=outputs: model(x, i)[:, :k], inputs)
        p = model(inputs, index)[:, :outputs].softmax(1).detach()
        hessian = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        diagonal = torch.einsum("knp,nkl,lnp->p", jacobian, hessian, jacobian)
        for name, part in zip(total, diagonal.split([each.numel() for each in total.values()]), strict=True):
            total[name] += part.view_as(total[name])
    tree.copy_(learner.params, now)
    return total


@pytest.mark.parametrize("scenario", list(Scenario))
def test_what_is_kept_are_the_samples_that_the_network_is_least_sure_of(scenario: Scenario) -> None:
    method, learner, tasks, ends = third_task(scenario, TaskStarted)
    model = learner.model.eval()
    tree.copy_({name: model.get_parameter(name) for name in ends[1]}, ends[1])
    outputs = 2 * CLASSES if scenario is Scenario.CLASS else CLASSES
    train, expected = tasks.tasks[1].train, []
    for label in tasks.tasks[1].classes:
        scored = []
        for n in (train.targets == label).nonzero().flatten().tolist():
            p = model(train.inputs[n : n + 1], 1)[0, :outputs].softmax(0).detach()
            scored.append((-float(torch.trace(torch.diag(p) - torch.outer(p, p))), n))
        expected += [n for _, n in sorted(scored)[:2]]
    kept = method.memory.columns["inputs"][: len(method.memory)][method.memory.groups == 1]
    torch.testing.assert_close(kept, train.inputs[expected], rtol=0, atol=0)


def test_a_class_with_few_samples_gives_all_and_the_first_of_equals_are_taken() -> None:
    scores = torch.tensor([0.1, 0.3, 0.3, 0.3, 0.2])
    assert memorable(scores, torch.tensor([4, 7, 7, 7, 4]), 2).tolist() == [4, 0, 1, 2]
    assert memorable(scores, torch.tensor([4, 7, 7, 7, 4]), 9).tolist() == [4, 0, 1, 2, 3]


@pytest.mark.parametrize("scenario", list(Scenario))
def test_the_weights_covariance_is_that_of_the_gauss_newton_matrix(scenario: Scenario) -> None:
    method, learner, tasks, ends = third_task(scenario, TaskStarted)
    expected = slow_ggn(learner, ends, tasks)
    for name, each in expected.items():
        # A head that came now has not been measured.
        torch.testing.assert_close(method.ggn.get(name, torch.zeros_like(each)), each, rtol=1e-9, atol=1e-12)


def test_a_part_of_the_samples_stands_for_all() -> None:
    whole, *_ = third_task(Scenario.DOMAIN, TaskStarted)
    part, *_ = third_task(Scenario.DOMAIN, TaskStarted, samples=SAMPLES - 1)
    ratio = [float(part.ggn[name].sum() / each.sum()) for name, each in whole.ggn.items()]
    assert all(0.8 < each < 1.2 for each in ratio)
    assert any(each != 1 for each in ratio)


@pytest.mark.parametrize("scenario", list(Scenario))
def test_the_penalty_and_its_gradient_are_those_of_the_gaussian_process(scenario: Scenario) -> None:
    method, learner, tasks, ends = third_task(scenario, TaskStarted, prior_precision=0.1)
    ggn = slow_ggn(learner, ends, tasks)
    variance = torch.cat([1 / (each + 0.1).flatten() for each in ggn.values()])
    points = [method.memory.columns["inputs"][: len(method.memory)][method.memory.groups == s] for s in (0, 1)]
    old, precisions = [], []
    for s, inputs in enumerate(points):
        jacobian = loop_jacobian(learner.model.eval(), lambda x, s=s: probabilities(learner, x, s), inputs)
        precisions.append([torch.linalg.inv(j @ torch.diag(variance) @ j.T + JITTER * torch.eye(6)) for j in jacobian])
        old.append(probabilities(learner, inputs, s).detach())

    torch.manual_seed(5)
    with torch.no_grad():
        for each in learner.params.values():
            each.add_(0.1 * torch.randn_like(each))
    penalty, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(variance)
    for s, inputs in enumerate(points):
        jacobian = loop_jacobian(learner.model, lambda x, s=s: probabilities(learner, x, s), inputs)
        away = (probabilities(learner, inputs, s).detach() - old[s]).T
        for k, precision in enumerate(precisions[s]):
            penalty += 5.0 / 2 * away[k] @ precision @ away[k]
            gradient += 5.0 * jacobian[k].T @ precision @ away[k]

    method.strength, method.replay_batch = 5.0, 100
    batch = Batch(tasks.tasks[2].train.inputs, tasks.tasks[2].train.targets, 2)
    learner.model.train()
    found = method.loss(learner, batch, torch.empty(0), torch.tensor(0.5, dtype=torch.float64))
    assert learner.model.training
    torch.testing.assert_close(found, 0.5 + penalty, rtol=1e-6, atol=1e-9)
    gradients = torch.autograd.grad(found, list(learner.params.values()), materialize_grads=True)
    found_gradient = torch.cat([each.flatten() for each in gradients])
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))


@pytest.mark.parametrize("scenario", list(Scenario))
def test_nothing_pulls_before_the_first_step(scenario: Scenario) -> None:
    method, learner, *_ = third_task(scenario, TaskStarted)
    distance = method.distance(learner, 100)
    assert abs(distance.item()) < 1e-18
    gradients = torch.autograd.grad(distance, list(learner.params.values()), materialize_grads=True)
    assert all(float(each.abs().max()) < 1e-6 for each in gradients)


def test_a_step_holds_its_share_of_each_task_by_their_block_of_the_inverse() -> None:
    method, learner, *_ = third_task(Scenario.DOMAIN, Step)
    points = [method.memory.columns["inputs"][: len(method.memory)][method.memory.groups == s] for s in (0, 1)]
    blocks: list[list[float]] = []
    for s, inputs in enumerate(points):
        away = (probabilities(learner, inputs, s).detach() - method.means[s]).T
        blocks.append([])
        for rows in itertools.combinations(range(len(inputs)), 2):
            pair = list(rows)
            inner = method.precisions[s][:, pair][:, :, pair]
            blocks[s].append(float((away[:, None, pair] @ inner @ away[:, pair, None]).sum()))
    seen = set()
    for step in range(8):
        learner.clock.total_steps = 100 + step
        found = method.distance(learner, 3).item()  # of two tasks, so two samples of each
        matching = [(a, b) for a in blocks[0] for b in blocks[1] if math.isclose(a + b, found, rel_tol=1e-9)]
        assert matching
        seen.add(matching[0])
        assert found == method.distance(learner, 3).item()
    assert len(seen) > 1


def test_the_inverse_of_a_kernel_of_samples_that_are_alike_is_that_with_the_jitter() -> None:
    row = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    found = inverse(torch.outer(row, row).unsqueeze(0))
    expected = (torch.eye(3, dtype=torch.float64) - torch.outer(row, row) / (25 + JITTER)) / JITTER  # Sherman-Morrison
    torch.testing.assert_close(found[0], expected, rtol=1e-7, atol=1e-3)


def test_rounding_below_zero_is_taken_for_zero() -> None:
    found = inverse(torch.diag(torch.tensor([2.0, -1e-5])))
    torch.testing.assert_close(found, torch.diag(torch.tensor([1 / (2 + JITTER), 1 / JITTER])))


@pytest.mark.parametrize("scenario", list(Scenario))
def test_old_answers_are_held(scenario: Scenario) -> None:
    moved = []
    for strength in (1e-9, 10.0):
        method, learner, *_ = third_task(scenario, StepsDone, lr=0.005, steps=40, strength=strength)
        points = [method.memory.columns["inputs"][: len(method.memory)][method.memory.groups == s] for s in (0, 1)]
        now = [probabilities(learner, inputs, s).detach() for s, inputs in enumerate(points)]
        moved.append(max(float((p - mean).abs().max()) for p, mean in zip(now, method.means, strict=True)))
    assert moved[1] < moved[0] / 2
