"""Variational continual learning, against quadrature, plain formulas and slow references in float64."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from methods import made_up
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from lifelong import randomness, tree
from lifelong.errors import InputError
from lifelong.learner import Batch, Learner
from lifelong.methods import VCL, Method, Naive, uncertainty
from lifelong.methods.vcl import k_center
from lifelong.models import Network, mean_field
from lifelong.streams import Scenario, Stream
from lifelong.training import loop
from lifelong.training.loop import Schedule, Step, TaskDone
from lifelong.training.optimizers import make_optimizer
from lifelong.tree import Params

SAMPLES, FEATURES, CLASSES = 30, 4, 3
NEVER = -200.0  # a log-variance whose variance is nothing in float64 beside any weight


def stream(scenario: Scenario, tasks: int = 3) -> Stream:
    return made_up.stream(scenario, tasks, samples=SAMPLES, features=FEATURES, classes=CLASSES)


def network(scenario: Scenario, trunk: nn.Module | None = None) -> Network:
    def normed() -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.LayerNorm(5))

    return made_up.network(scenario, lambda: trunk or normed(), features=FEATURES, classes=CLASSES)


def learner_for(scenario: Scenario, lr: float = 0.01) -> Learner:
    return Learner(network(scenario), make_optimizer("adam", lr, {}), scenario, seed=3, planned_tasks=3)


def trained(method: Method, scenario: Scenario = Scenario.DOMAIN, tasks: int = 3, steps: int = 6) -> Learner:
    learner = learner_for(scenario)
    torch.manual_seed(4)
    for event in loop.train(learner, method, stream(scenario), Schedule(batch_size=10, steps=steps)):
        if isinstance(event, TaskDone) and event.task.index == tasks - 1:
            break
    return learner


def some(seed: int, **shapes: tuple[int, ...]) -> Params:
    torch.manual_seed(seed)
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def test_divergence_against_quadrature() -> None:
    shapes: dict[str, tuple[int, ...]] = {"a": (2,), "b": (1, 2)}
    mean, logvar, prior_mean, prior_logvar = (some(seed, **shapes) for seed in range(4))
    w = torch.linspace(-40, 40, 40_001, dtype=torch.float64)
    expected = 0.0
    for name in shapes:
        flat = [each[name].flatten() for each in (mean, logvar, prior_mean, prior_logvar)]
        for m, v, n, u in zip(*flat, strict=True):
            log_q, log_p = Normal(m, (v / 2).exp()).log_prob(w), Normal(n, (u / 2).exp()).log_prob(w)
            expected += float(torch.trapezoid(log_q.exp() * (log_q - log_p), w))
    found = mean_field.divergence(mean, logvar, prior_mean, prior_logvar)
    assert float(found) == pytest.approx(expected, rel=1e-9)
    assert float(mean_field.divergence(mean, logvar, mean, logvar)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_tempering_is_a_product_of_densities(share: float, variance: float) -> None:
    mean, logvar = some(0, a=(3,)), some(1, a=(3,))
    new_mean, new_logvar = mean_field.tempered(mean, logvar, variance, share)
    w = torch.linspace(-30, 30, 100_001, dtype=torch.float64)
    for m, v, found_m, found_v in zip(mean["a"], logvar["a"], new_mean["a"], new_logvar["a"], strict=True):
        prior = Normal(torch.zeros((), dtype=torch.float64), math.sqrt(variance))
        density = ((1 - share) * Normal(m, (v / 2).exp()).log_prob(w) + share * prior.log_prob(w)).exp()
        density = density / torch.trapezoid(density, w)
        expected = torch.trapezoid(w * density, w)
        assert float(found_m) == pytest.approx(float(expected), rel=1e-9, abs=1e-12)
        assert float(found_v.exp()) == pytest.approx(float(torch.trapezoid((w - expected) ** 2 * density, w)), rel=1e-8)


def test_diffusion_moves_samples_as_the_process_does() -> None:
    mean, logvar = some(0, a=(3,)), some(1, a=(3,))
    found_mean, found_logvar = mean_field.diffused(mean, logvar, 0.5, 0.3)
    torch.manual_seed(0)
    w = mean["a"] + (logvar["a"] / 2).exp() * torch.randn(100_000, 3, dtype=torch.float64)
    w = 0.7 * w + math.sqrt((1 - 0.7**2) * 0.5) * torch.randn_like(w)
    torch.testing.assert_close(w.mean(0), found_mean["a"], rtol=0, atol=0.02)
    torch.testing.assert_close(w.var(0), found_logvar["a"].exp(), rtol=0.02, atol=0)


@pytest.mark.parametrize("forget", [mean_field.tempered, mean_field.diffused])
def test_forgetting_ends_at_the_prior_and_begins_at_the_posterior(forget: Any) -> None:
    mean, logvar = some(0, a=(3,)), some(1, a=(3,))
    kept_mean, kept_logvar = forget(mean, logvar, 0.5, 0.0)
    torch.testing.assert_close([kept_mean, kept_logvar], [mean, logvar])
    gone_mean, gone_logvar = forget(mean, logvar, 0.5, 1.0)
    torch.testing.assert_close(gone_mean["a"], torch.zeros_like(mean["a"]))
    torch.testing.assert_close(gone_logvar["a"].exp(), torch.full_like(mean["a"], 0.5))


def posterior(net: Network) -> tuple[Params, Params]:
    mean = tree.parameters(net)
    return mean, {name: torch.full_like(each, -1.0) for name, each in mean.items()}


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("scenario", list(Scenario))
def test_without_variance_it_is_the_plain_net(scenario: Scenario, local: bool) -> None:
    net = network(scenario)
    for _ in range(2 if scenario is not Scenario.DOMAIN else 0):
        net.head.grow(CLASSES)
    mean, logvar = posterior(net)
    nothing = {name: torch.full_like(each, NEVER) for name, each in logvar.items()}
    inputs = stream(scenario).tasks[0].train.inputs
    features, logits = mean_field.answer(net, mean, nothing, inputs, 0, local=local)
    torch.testing.assert_close(features, net.features(inputs), rtol=0, atol=1e-7)
    torch.testing.assert_close(logits, net(inputs, 0), rtol=0, atol=1e-7)
    _, noisy = mean_field.answer(net, mean, logvar, inputs, 0, local=local)
    assert not torch.allclose(noisy, logits, atol=0.01)


def test_local_noise_has_the_distribution_of_drawn_weights() -> None:
    convolutions = nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2, padding=1, stride=2, bias=False), nn.Flatten()
    )
    net = network(Scenario.DOMAIN, convolutions)
    mean, logvar = posterior(net)
    inputs = stream(Scenario.DOMAIN).tasks[0].train.inputs[:2]
    torch.manual_seed(0)
    moments = []
    for local in (True, False):
        drawn = torch.stack(
            [mean_field.answer(net, mean, logvar, inputs, 0, local=local)[1].detach() for _ in range(2_000)]
        )
        moments.append((drawn.mean(0), drawn.std(0)))
    (mean_one, std_one), (mean_other, std_other) = moments
    torch.testing.assert_close(mean_one, mean_other, rtol=0, atol=0.15)
    torch.testing.assert_close(std_one, std_other, rtol=0.1, atol=0)
    assert not net.trunk[1]._forward_hooks


def test_local_noise_has_a_gradient_where_nothing_is_put_in() -> None:
    net = network(Scenario.DOMAIN, nn.Sequential(nn.Linear(FEATURES, 5, bias=False), nn.ReLU()))
    mean, logvar = posterior(net)
    live = {name: each.requires_grad_() for name, each in logvar.items()}
    inputs = torch.zeros(3, FEATURES, dtype=torch.float64)
    _, logits = mean_field.answer(net, mean, live, inputs, 0)
    gradients = torch.autograd.grad(logits.sum(), [*mean.values(), *live.values()])
    assert all(each.isfinite().all() for each in gradients)


def test_likelihood_comes_first() -> None:
    """The share of the first task that trains the means alone is fine-tuning, to the bit."""
    vcl, naive = trained(VCL(start=1.0), tasks=1), trained(Naive(), tasks=1)
    torch.testing.assert_close(tree.snapshot(vcl.model.state_dict()), tree.snapshot(naive.model.state_dict()))
    for start, plain in ((0.5, 3), (0.0, 0), (0.34, 3)):
        method, moved = VCL(start=start), []
        learner = learner_for(Scenario.DOMAIN)
        for event in loop.train(learner, method, stream(Scenario.DOMAIN, 1), Schedule(batch_size=10, steps=6)):
            if isinstance(event, Step):
                moved.append(any((each != -6.0).any() for each in method.logvar.values()))
        assert moved == [False] * plain + [True] * (6 - plain)


def test_first_means_are_drawn_as_wide_as_asked_for() -> None:
    vcl, tasks = VCL(deviation=0.1), stream(Scenario.DOMAIN)
    learner = Learner(
        network(Scenario.DOMAIN, nn.Linear(FEATURES, 2_000)), make_optimizer("adam", 0.1, {}), Scenario.DOMAIN
    )
    loop.grow(learner, tasks.tasks[0])
    vcl.before_task(learner, tasks.tasks[0])
    weight = learner.params["trunk.weight"].detach()
    assert float(weight.abs().max()) <= 0.2
    # A normal distribution cut at two deviations has a variance smaller by 2 * 2 * density(2) / mass.
    density, mass = math.exp(-2) / math.sqrt(2 * math.pi), math.erf(math.sqrt(2))
    assert float(weight.std()) == pytest.approx(0.1 * math.sqrt(1 - 4 * density / mass), rel=0.02)
    second = tree.snapshot(learner.params)
    vcl.before_task(learner, tasks.tasks[1])
    torch.testing.assert_close(tree.snapshot(learner.params), second, rtol=0, atol=0)


def second_task(scenario: Scenario, **settings: Any) -> tuple[VCL, Learner, Params, Batch]:
    """VCL within the second task, the weights after the first, and a batch."""
    vcl, learner, ends = VCL(**settings), learner_for(scenario), []
    tasks = stream(scenario)
    torch.manual_seed(4)
    for event in loop.train(learner, vcl, tasks, Schedule(batch_size=10, steps=6)):
        if isinstance(event, TaskDone):
            ends.append(tree.snapshot(learner.trained))
        if isinstance(event, Step) and event.task.index == 1 and learner.clock.step == 3:
            break
    return vcl, learner, ends[0], Batch(tasks.tasks[1].train.inputs, tasks.tasks[1].train.targets, 1)


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("scenario", list(Scenario))
def test_the_loss_is_the_bound(scenario: Scenario, draws: int) -> None:
    vcl, learner, old, batch = second_task(scenario, draws=draws, prior_variance=2.0)
    torch.manual_seed(5)
    logits = vcl.forward(learner, batch)
    found = vcl.loss(learner, batch, logits, F.cross_entropy(logits, batch.targets))

    torch.manual_seed(5)
    live = tree.parameters(learner.model)
    logvar = {name: vcl.logvar[name] for name in live}
    entropy = sum(
        F.cross_entropy(mean_field.answer(learner.model, live, logvar, batch.inputs, 1)[1], batch.targets)
        for _ in range(draws)
    )
    apart = torch.zeros((), dtype=torch.float64)
    for name, each in live.items():
        q = Normal(each, (vcl.logvar[name] / 2).exp())
        if name in old:
            p = Normal(old[name], (old[f"logvar.{name}"] / 2).exp())
        else:
            p = Normal(torch.zeros_like(each), math.sqrt(2.0))
        apart = apart + kl_divergence(q, p).sum()
    torch.testing.assert_close(found, entropy / draws + apart / SAMPLES, rtol=1e-9, atol=0)


@pytest.mark.parametrize("by", ["tempering", "diffusion"])
def test_the_old_posterior_forgets(by: str) -> None:
    vcl, _, old, _ = second_task(Scenario.DOMAIN, forget=0.2, forget_by=by, prior_variance=0.5)
    mean = {name: each for name, each in old.items() if not name.startswith("logvar.")}
    logvar = {name: old[f"logvar.{name}"] for name in mean}
    for name, m in mean.items():
        v = logvar[name].exp()
        if by == "tempering":
            precision = 0.8 / v + 0.2 / 0.5
            wanted = (0.8 * m / v / precision, 1 / precision)
        else:
            wanted = (0.8 * m, 0.64 * v + 0.36 * 0.5)
        torch.testing.assert_close(vcl.prior_mean[name], wanted[0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(vcl.prior_logvar[name].exp(), wanted[1], rtol=1e-9, atol=0)


def test_forgetting_lets_a_changed_stream_in() -> None:
    """The same inputs with other answers: who forgets learns them sooner."""
    tasks = stream(Scenario.DOMAIN, 2)
    first = replace(tasks.tasks[0].train, targets=(tasks.tasks[0].train.inputs[:, 0] > 0).long())
    turned = replace(first, targets=1 - first.targets)
    pair = (
        replace(tasks.tasks[0], train=first, test=first),
        replace(tasks.tasks[1], train=turned, test=turned),
    )
    right = {}
    for forget in (0.0, 0.9):
        vcl, learner = VCL(start=0.3, forget=forget, samples=20), learner_for(Scenario.DOMAIN, lr=0.02)
        torch.manual_seed(0)
        for _ in loop.train(learner, vcl, replace(tasks, tasks=pair), Schedule(batch_size=30, steps=100)):
            pass
        answers = vcl.logits(learner, turned.inputs, 1).argmax(1)
        right[forget] = float((answers == turned.targets).double().mean())
    assert right[0.9] > right[0.0] + 0.2


def test_a_new_head_begins_small_with_the_first_prior() -> None:
    vcl, learner = VCL(prior_variance=2.0), learner_for(Scenario.TASK)
    learner.model.head.block = lambda index, count: nn.Linear(5, 400).double()
    task = stream(Scenario.TASK).tasks
    loop.grow(learner, task[0])
    vcl.before_task(learner, task[0])
    assert float(learner.model.head.blocks[0].weight.detach().std()) > 0.2
    loop.grow(learner, task[1])
    vcl.before_task(learner, task[1])
    weight = learner.model.head.blocks[1].weight.detach()
    assert float(weight.std()) == pytest.approx(0.1, rel=0.1)
    assert abs(float(weight.mean())) < 0.01
    name = "head.blocks.1.weight"
    assert torch.equal(vcl.prior_mean[name], torch.zeros_like(weight))
    torch.testing.assert_close(vcl.prior_logvar[name].exp(), torch.full_like(weight, 2.0))
    assert vcl.logvar[name].unique().tolist() == [-6.0]


@pytest.mark.parametrize("begin", ["posterior", "variances", "anew"])
@pytest.mark.parametrize("scenario", [Scenario.DOMAIN, Scenario.TASK])
def test_a_later_task_begins_where_it_is_told_to(scenario: Scenario, begin: Any) -> None:
    vcl = VCL(begin=begin, start=0.0, log_variance=-5.0)
    learner = trained(vcl, scenario, tasks=1)
    mean, logvar = tree.snapshot(learner.params), tree.snapshot(vcl.logvar)
    second = stream(scenario).tasks[1]
    loop.grow(learner, second)
    vcl.before_task(learner, second)
    for name, old in mean.items():
        live = learner.params[name].detach()
        torch.testing.assert_close((vcl.prior_mean[name], vcl.prior_logvar[name]), (old, logvar[name]), rtol=0, atol=0)
        assert not (logvar[name] == -5).any()
        head_of_the_first = scenario is Scenario.TASK and name.startswith("head.")
        renewed = begin != "posterior" and not head_of_the_first
        torch.testing.assert_close(vcl.logvar[name], torch.full_like(old, -5) if renewed else logvar[name])
        if renewed and begin == "anew":
            assert not torch.equal(live, old)
            assert float(live.abs().max()) <= 0.2
        else:
            assert torch.equal(live, old)


def test_answers_average_probabilities_over_drawn_weights() -> None:
    vcl = VCL(samples=5)
    learner = trained(vcl, tasks=1)
    inputs = stream(Scenario.DOMAIN).tasks[0].test.inputs[:4]
    each = vcl.log_probabilities(learner, inputs, 0)
    assert each.shape == (5, 4, CLASSES)
    torch.testing.assert_close(each.exp().sum(2), torch.ones(5, 4, dtype=torch.float64))
    assert not torch.allclose(each[0], each[1], atol=1e-3)
    torch.testing.assert_close(vcl.logits(learner, inputs, 0).exp(), each.exp().mean(0))
    state = torch.get_rng_state()
    torch.testing.assert_close(vcl.log_probabilities(learner, inputs, 0), each, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_uncertainty_is_its_formula() -> None:
    torch.manual_seed(0)
    p = torch.randn(6, 3, 4, dtype=torch.float64).softmax(2)
    found = uncertainty(p.log())
    mean = p.mean(0)
    torch.testing.assert_close(found.entropy, -(mean * mean.log()).sum(1))
    information = (p * (p / mean).log()).sum(2).mean(0)  # KL from each draw to the mean
    torch.testing.assert_close(found.mutual_information, information)
    certain = uncertainty(torch.tensor([[[0.0, -torch.inf]]]))
    assert certain.entropy.tolist() == certain.mutual_information.tolist() == [0.0]


def test_wider_posteriors_know_less() -> None:
    vcl = VCL(samples=50)
    learner = trained(vcl, tasks=1, steps=60)
    inputs, information = stream(Scenario.DOMAIN).tasks[0].train.inputs, []
    for _ in range(3):
        found = uncertainty(vcl.log_probabilities(learner, inputs, 0))
        assert found.entropy.shape == (SAMPLES,)
        assert (found.mutual_information <= found.entropy).all()
        information.append(float(found.mutual_information.mean().detach()))
        for each in vcl.logvar.values():
            each.detach().add_(3.0)
    assert information[0] < information[1] / 2 < information[2] / 4


def coreset(vcl: VCL, task: int) -> dict[str, Tensor]:
    """What is held out of a task."""
    return vcl.coresets.rows((vcl.coresets.groups == task).nonzero().flatten())


@pytest.mark.parametrize("choose", ["random", "k-center"])
@pytest.mark.parametrize("scenario", list(Scenario))
def test_samples_of_a_coreset_are_not_trained_on(scenario: Scenario, choose: str) -> None:
    vcl, tasks = VCL(coreset=8, choose=choose, coreset_steps=2), stream(scenario)
    learner = learner_for(scenario)
    seen: list[Tensor] = []
    original = vcl.forward
    vcl.forward = lambda learner, batch: (seen.append(batch.inputs), original(learner, batch))[1]  # type: ignore[method-assign, func-returns-value]
    for event in loop.train(learner, vcl, tasks, Schedule(batch_size=11, steps=4)):
        if isinstance(event, TaskDone):
            whole = event.task.train.inputs
            trained_on, kept = torch.cat(seen).unique(dim=0), coreset(vcl, event.task.index)["inputs"]
            assert vcl.count == len(trained_on) == SAMPLES - 8
            assert len(kept.unique(dim=0)) == 8
            together = torch.cat([trained_on, kept]).unique(dim=0)
            assert torch.equal(together, whole.unique(dim=0))
            matches = (kept[:, None] == whole[None]).all(2)
            expected = event.task.train.targets[matches.int().argmax(1)]
            assert torch.equal(coreset(vcl, event.task.index)["targets"], expected)
            seen.clear()


def test_k_center_picks_the_farthest() -> None:
    torch.manual_seed(0)
    points = torch.randn(20, 3, dtype=torch.float64)
    chosen = k_center(points, 6, 4).tolist()
    assert chosen[0] == 4
    for count in range(1, 6):
        nearest = [min(math.dist(p, points[c].tolist()) for c in chosen[:count]) for p in points.tolist()]
        assert chosen[count] == max(range(20), key=nearest.__getitem__)
    assert sorted(k_center(torch.zeros(5, 2), 5, 2).tolist()) == [0, 1, 2, 3, 4]


def test_only_a_copy_is_tuned_on_the_coresets() -> None:
    vcl, learner = VCL(coreset=6, coreset_steps=60, samples=20), learner_for(Scenario.TASK, lr=0.03)
    tasks, before = stream(Scenario.TASK), {}
    torch.manual_seed(4)
    for event in loop.train(learner, vcl, tasks, Schedule(batch_size=10, steps=6)):
        if isinstance(event, loop.TaskStarted):
            assert not vcl.tuned_mean
        if isinstance(event, loop.StepsDone):
            before = tree.snapshot({**learner.trained, **tree.weights(learner.model)})
        if isinstance(event, TaskDone):
            after = tree.snapshot({**learner.trained, **tree.weights(learner.model)})
            torch.testing.assert_close(after, before, rtol=0, atol=0)
    kept = [(rows["inputs"], rows["targets"]) for rows in (coreset(vcl, index) for index in range(len(tasks)))]

    def entropy() -> float:
        terms = [F.nll_loss(vcl.logits(learner, x, k), y) for k, (x, y) in enumerate(kept)]
        return float(torch.stack(terms).mean().detach())

    tuned = entropy()
    vcl.tuned_mean, vcl.tuned_logvar = {}, {}
    assert tuned < entropy() - 0.005


def test_a_coreset_leaves_something_to_train_on() -> None:
    message = f"coreset of {SAMPLES} leaves nothing to train on of the {SAMPLES} training samples of task 1"
    with pytest.raises(InputError, match=message):
        trained(VCL(coreset=SAMPLES))


def test_frozen_weights_are_not_drawn() -> None:
    net = network(Scenario.DOMAIN)
    net.trunk.requires_grad_(False)
    before = copy.deepcopy(net.trunk.state_dict())
    vcl = VCL(start=0.0)
    learner = Learner(net, make_optimizer("adam", 0.1, {}), Scenario.DOMAIN, planned_tasks=3)
    for _ in loop.train(learner, vcl, stream(Scenario.DOMAIN), Schedule(batch_size=10, steps=3)):
        pass
    assert set(vcl.logvar) == {"head.linear.weight", "head.linear.bias"}
    torch.testing.assert_close(net.trunk.state_dict(), before, rtol=0, atol=0)


def test_coresets_are_drawn_by_the_seed() -> None:
    vcl, tasks = VCL(coreset=5), stream(Scenario.DOMAIN)
    learner = learner_for(Scenario.DOMAIN)
    loop.grow(learner, tasks.tasks[0])
    vcl.before_task(learner, tasks.tasks[0])
    drawn = torch.randperm(SAMPLES, generator=randomness.generator(learner.seed, "coreset", 0))
    assert torch.equal(vcl.held, drawn[:5])
