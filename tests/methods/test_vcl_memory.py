"""The memory of likelihood terms beside a Gaussian, against quadrature and term-by-term references in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from methods import made_up
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from lifelong import randomness, tree
from lifelong.learner import Batch, Learner
from lifelong.memory import Buffer
from lifelong.methods.vcl_memory import Measure, VCLMemory, divided, paired
from lifelong.models import Network, mean_field, with_head
from lifelong.streams import Scenario, Stream
from lifelong.training import loop
from lifelong.training.loop import Schedule, TaskDone, TaskStarted
from lifelong.training.optimizers import make_optimizer
from lifelong.tree import Params

SAMPLES, FEATURES, CLASSES, TASKS = 24, 3, 3, 3


def stream(scenario: Scenario) -> Stream:
    return made_up.stream(scenario, TASKS, samples=SAMPLES, features=FEATURES, classes=CLASSES)


def network(scenario: Scenario) -> Network:
    def trunk() -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Dropout(0.5))

    return made_up.network(scenario, trunk, features=FEATURES, classes=CLASSES, tasks=TASKS)


def learner_for(scenario: Scenario) -> Learner:
    return Learner(network(scenario), make_optimizer("adam", 0.02, {}), scenario, seed=3, planned_tasks=TASKS)


def posterior(net: Network, seed: int = 0) -> tuple[Params, Params]:
    torch.manual_seed(seed)
    mean = tree.snapshot(tree.parameters(net))
    return mean, {name: torch.randn_like(each) - 1 for name, each in mean.items()}


def one_weight() -> Network:
    """A network of one weight: `log p(y = 0 | x) = log sigmoid(w x)`."""
    net = with_head(nn.Linear(1, 1, bias=False), "single", sample=torch.zeros(2, 1), classes=(2,), outputs=2).double()
    net.head.linear.weight.data = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    net.head.linear.bias.data.zero_()
    net.head.requires_grad_(False)
    return net


def test_terms_against_quadrature() -> None:
    m, s = 0.4, 0.3
    inputs = torch.tensor([[1.0], [-1.5], [3.0], [0.0]], dtype=torch.float64)
    targets, weights = torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 0.5, 1.0, 1.0], dtype=torch.float64)
    name = "trunk.weight"
    # As draws the quantiles, equally likely, so that a mean is an integral but for the far tails.
    count = 400
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    offsets = [{name: s * each.view(1, 1)} for each in Normal(0.0, 1.0).icdf(levels)]
    found = Measure(one_weight(), {name: torch.tensor([[m]], dtype=torch.float64)}, offsets).terms(
        inputs, targets, weights, 0
    )

    w = torch.linspace(m - 9 * s, m + 9 * s, 20_001, dtype=torch.float64)
    q = Normal(m, s).log_prob(w).exp()
    slopes, precisions = [], []
    for x, y, u, misfit in zip(inputs.flatten(), targets, weights, found.misfit, strict=True):
        z = w * x * (1 if y == 0 else -1)
        term, gradient = u * F.logsigmoid(z), (1 - z.sigmoid()) * x * (1 if y == 0 else -1)
        slopes.append(float(torch.trapezoid(q * u * gradient, w)))
        precisions.append(float(torch.trapezoid(q * u * gradient**2, w)))
        apart = term - (slopes[-1] * (w - m) - precisions[-1] * (w - m) ** 2 / 2)
        other = q * apart.exp()
        other = other / torch.trapezoid(other, w)
        divergence = float(torch.trapezoid(q * (q.log() - other.log()), w))
        assert float(misfit) == pytest.approx(divergence, rel=0.12, abs=1e-6)
    assert float(found.slope[name]) == pytest.approx(sum(slopes), rel=1e-2)
    assert float(found.precision[name]) == pytest.approx(sum(precisions), rel=1e-2)
    assert found.misfit.argmax() == 2  # far out, and on the wrong side
    assert float(found.misfit[3]) == pytest.approx(0.0, abs=1e-12)  # says nothing of the weight


@pytest.mark.parametrize("scenario", list(Scenario))
def test_terms_against_one_gradient_at_a_time(scenario: Scenario) -> None:
    net = network(scenario)
    for _ in range(TASKS if scenario is not Scenario.DOMAIN else 0):
        net.head.grow(CLASSES)
    mean, logvar = posterior(net)
    offsets = paired(logvar, 2, torch.Generator().manual_seed(1))
    samples = Buffer()
    for index in (2, 0):
        task = stream(scenario).tasks[index].train
        columns = {"inputs": task.inputs, "targets": task.targets, "tasks": torch.full_like(task.targets, index)}
        samples.append({**columns, "weights": torch.linspace(0.2, 1, SAMPLES, dtype=torch.float64)}, 0)
    everything = samples.columns
    net.eval()
    slope, precision = tree.zeros_like(mean), tree.zeros_like(mean)
    misfit = torch.empty(2 * SAMPLES, dtype=torch.float64)
    for row in range(2 * SAMPLES):
        x, y, t, u = (everything[name][row] for name in ("inputs", "targets", "tasks", "weights"))
        values, gradients = [], []
        for offset in offsets:
            tree.copy_(tree.parameters(net), tree.add(mean, offset))
            value = -F.cross_entropy(net(x[None], int(t)), y[None])
            live = tree.parameters(net)
            found = torch.autograd.grad(value, list(live.values()), allow_unused=True)
            gradients.append(
                {n: torch.zeros_like(live[n]) if g is None else g for n, g in zip(live, found, strict=True)}
            )
            values.append(u * value.detach())
        own_slope = tree.map(lambda *g: u * torch.stack(g).mean(0), *gradients)
        own_precision = tree.map(lambda *g: u * torch.stack(g).square().mean(0), *gradients)
        apart = torch.stack(
            [
                v - tree.dot(own_slope, d) + tree.dot(own_precision, tree.mul(d, d)) / 2
                for v, d in zip(values, offsets, strict=True)
            ]
        )
        misfit[row] = apart.exp().mean().log() - apart.mean()
        slope, precision = tree.add(slope, own_slope), tree.add(precision, own_precision)
    net.train()
    seen, totals = [], (tree.zeros_like(mean), tree.zeros_like(mean))
    for rows, terms in Measure(net, mean, offsets)(samples, stream(scenario).tasks[0].train):
        torch.testing.assert_close(terms.misfit, misfit[rows], rtol=1e-8, atol=1e-10)
        totals = tree.add(totals[0], terms.slope), tree.add(totals[1], terms.precision)
        seen += rows.tolist()
    assert sorted(seen) == list(range(2 * SAMPLES))
    torch.testing.assert_close(totals, (slope, precision), rtol=1e-8, atol=1e-10)
    assert net.training


def test_division_undoes_a_product() -> None:
    torch.manual_seed(0)
    mean, variance, slope = ({"a": torch.rand(5, dtype=torch.float64) + 0.1} for _ in range(3))
    precision = {"a": torch.rand(5, dtype=torch.float64)}
    # N(m, v) times a term around m' = the mean of the product has precision 1/v + h and mean m + g v.
    product = mean["a"] + slope["a"] * variance["a"]
    known = {"a": -(1 / variance["a"] + precision["a"]).log()}
    wide = {"a": torch.full((5,), 50.0, dtype=torch.float64)}
    found_mean, found_logvar = divided({"a": product}, known, slope, precision, wide)
    torch.testing.assert_close(found_logvar["a"].exp(), variance["a"])
    torch.testing.assert_close(found_mean["a"], product - slope["a"] * variance["a"])
    torch.testing.assert_close(found_mean, mean)


def test_a_precision_does_not_fall_below_that_of_the_prior() -> None:
    logvar = {"a": -torch.tensor([10.0, 10.0, 2.0], dtype=torch.float64).log()}
    prior = {"a": -torch.tensor([4.0, 4.0, 4.0], dtype=torch.float64).log()}
    zero = {"a": torch.zeros(3, dtype=torch.float64)}
    taken = {"a": torch.tensor([3.0, 20.0, 1.0], dtype=torch.float64)}
    _, left = divided(zero, logvar, zero, taken, prior)
    torch.testing.assert_close((-left["a"]).exp(), torch.tensor([7.0, 4.0, 2.0], dtype=torch.float64))


def test_deviations_come_in_pairs() -> None:
    logvar = {"a": torch.tensor([0.0, -4.0], dtype=torch.float64)}
    offsets = paired(logvar, 4_000, torch.Generator().manual_seed(0))
    stacked = torch.stack([each["a"] for each in offsets])
    assert torch.equal(stacked[::2], -stacked[1::2])
    torch.testing.assert_close(stacked.std(0), (logvar["a"] / 2).exp(), rtol=0.03, atol=0)


def remembered(method: VCLMemory, scenario: Scenario, tasks: int = TASKS) -> Learner:
    learner = learner_for(scenario)
    torch.manual_seed(4)
    for event in loop.train(learner, method, stream(scenario), Schedule(batch_size=12, steps=8)):
        if isinstance(event, TaskDone) and event.task.index == tasks - 1:
            break
    return learner


def rows_of(memory: Buffer) -> dict[str, Tensor]:
    return memory.rows(torch.arange(len(memory)))


def test_what_a_gaussian_fits_worst_is_kept() -> None:
    method = VCLMemory(memories=6)
    learner = remembered(method, Scenario.DOMAIN, tasks=1)
    mean, logvar = map(tree.snapshot, method.posterior(learner))
    measure = Measure(learner.model, mean, paired(logvar, 5, randomness.generator(learner.seed, "terms", 0)))
    task = stream(Scenario.DOMAIN).tasks[0].train
    learner.model.eval()
    misfit = measure.terms(task.inputs, task.targets, torch.ones(SAMPLES), 0).misfit
    worst = misfit.argsort(descending=True)[:6]
    assert torch.equal(rows_of(method.memory)["inputs"], task.inputs[worst])
    assert torch.equal(rows_of(method.memory)["targets"], task.targets[worst])


@pytest.mark.parametrize("scenario", list(Scenario))
def test_gaussian_and_memory_make_up_what_was_learned(scenario: Scenario) -> None:
    method = VCLMemory(memories=5, forget=0.2)
    learner = remembered(method, scenario)
    mean, logvar = map(tree.snapshot, method.posterior(learner))
    measure = Measure(learner.model, mean, paired(logvar, 5, randomness.generator(learner.seed, "terms", TASKS - 1)))
    slope, precision = tree.zeros_like(mean), tree.zeros_like(mean)
    for _, terms in measure(method.memory, stream(scenario).tasks[0].train):
        slope, precision = tree.add(slope, terms.slope), tree.add(precision, terms.precision)
    for name, v in logvar.items():
        left = (-method.left_logvar[name]).exp()
        free = left > (-method.prior_logvar[name]).exp() * (1 + 1e-9)  # those that the prior does not hold
        torch.testing.assert_close((left + precision[name])[free], (-v).exp()[free])
        torch.testing.assert_close(left * method.left_mean[name] + slope[name], left * mean[name])
    assert len(method.memory) == 5


@pytest.mark.parametrize("scenario", list(Scenario))
def test_the_loss_is_the_bound_with_the_memory_in_it(scenario: Scenario) -> None:
    method, learner = VCLMemory(memories=40, forget=0.25, prior_variance=0.5), learner_for(scenario)
    torch.manual_seed(4)
    for event in loop.train(learner, method, stream(scenario), Schedule(batch_size=12, steps=8)):
        if isinstance(event, TaskDone):
            left = tree.snapshot(method.left_mean), tree.snapshot(method.left_logvar)
        if isinstance(event, TaskStarted) and event.task.index == 2:
            break
    tasks, rows = stream(scenario), rows_of(method.memory)
    assert set(rows["tasks"].tolist()) == {0, 1}
    torch.testing.assert_close(rows["weights"], 0.75 ** (2 - rows["tasks"]).float())
    for row, task in enumerate(rows["tasks"].tolist()):
        own = tasks.tasks[task].train
        match = (own.inputs == rows["inputs"][row]).all(1)
        assert own.targets[match].tolist() == [int(rows["targets"][row])]

    forgotten = mean_field.tempered(*left, 0.5, 0.25)
    for name, each in forgotten[0].items():
        torch.testing.assert_close(method.prior_mean[name], each)
        torch.testing.assert_close(method.prior_logvar[name], forgotten[1][name])
    learner.model.eval()
    batch = Batch(tasks.tasks[2].train.inputs, tasks.tasks[2].train.targets, 2)
    torch.manual_seed(5)
    logits = method.forward(learner, batch)
    found = method.loss(learner, batch, logits, F.cross_entropy(logits, batch.targets))
    torch.manual_seed(5)
    at = method.posterior(learner)
    expected = F.cross_entropy(mean_field.answer(learner.model, *at, batch.inputs, 2)[1], batch.targets)
    divergence = mean_field.divergence(*at, method.prior_mean, method.prior_logvar)
    answers = mean_field.answer(learner.model, *at, rows["inputs"], rows["tasks"])[1]
    terms = F.cross_entropy(answers, rows["targets"], reduction="none")
    torch.testing.assert_close(found, expected + (divergence + (rows["weights"] * terms).sum()) / SAMPLES)


@pytest.mark.parametrize("settings", [{"keep": "random"}, {"candidates": 4}, {"forget_by": "diffusion", "forget": 0.1}])
def test_the_memory_is_of_one_size(settings: dict[str, Any]) -> None:
    method = VCLMemory(memories=7, **settings)
    learner = remembered(method, Scenario.DOMAIN)
    kept = rows_of(method.memory)
    assert len(method.memory) == 7
    assert len(kept["inputs"].unique(dim=0)) == 7
    if "candidates" in settings:
        assert int((kept["tasks"] == TASKS - 1).sum()) <= 4
    assert all(math.isfinite(float(each.sum())) for each in tree.snapshot(tree.parameters(learner.model)).values())
