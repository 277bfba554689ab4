"""Generative replay and the generative classifier, against plain formulas and slow references."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from methods import made_up
from torch import Tensor
from torch.nn import functional as F

from lifelong import randomness, tree
from lifelong.errors import InputError
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import run
from lifelong.learner import Batch, Learner
from lifelong.methods import BIR, DGR, METHODS, Chain, GenerativeClassifier, Method, build, gating, replay
from lifelong.methods.method import transient
from lifelong.models import Network, vae
from lifelong.streams import Scenario, Stream
from lifelong.training import loop
from lifelong.training.loop import Schedule, TaskDone
from lifelong.training.optimizers import make_optimizer
from lifelong.tree import Params

SAMPLES, PIXELS, CLASSES = 24, 6, 2


def stream(scenario: Scenario, tasks: int = 3) -> Stream:
    return made_up.stream(
        scenario, tasks, samples=SAMPLES, features=PIXELS, classes=CLASSES, draw=torch.rand, in_turn=True
    )


def network(scenario: Scenario, tasks: int = 3) -> Network:
    def trunk() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(PIXELS, 5), torch.nn.Tanh())

    return made_up.network(scenario, trunk, features=PIXELS, classes=CLASSES, tasks=tasks)


def learner_for(scenario: Scenario) -> Learner:
    return Learner(network(scenario), make_optimizer("adam", 0.01, {}), scenario, seed=3, planned_tasks=3)


def trained(method: Method, scenario: Scenario, tasks: int = 3, steps: int = 8) -> Learner:
    learner = learner_for(scenario)
    for event in loop.train(learner, method, stream(scenario), Schedule(batch_size=8, steps=steps)):
        if isinstance(event, TaskDone) and event.task.index == tasks - 1:
            break
    return learner


def params(*, latent: int = 2, hidden: tuple[int, ...] = (4,)) -> Params:
    return vae.initial(PIXELS, hidden, latent, seed=1, like=torch.zeros(0, dtype=torch.float64))


def test_divergence_of_codes_against_quadrature() -> None:
    mean, logvar = torch.tensor([[0.7, -1.2]], dtype=torch.float64), torch.tensor([[-0.9, 0.4]], dtype=torch.float64)
    z = torch.linspace(-15, 15, 20001, dtype=torch.float64)
    expected = 0.0
    for m, v in zip(mean[0], logvar[0].exp(), strict=True):
        q, p = torch.distributions.Normal(m, v.sqrt()), torch.distributions.Normal(z.new_zeros(()), z.new_ones(()))
        expected += float(torch.trapezoid(q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)), z))
    assert float(vae.divergence(mean, logvar)) == pytest.approx(expected, rel=1e-9)


def test_bernoulli_likelihood_is_its_formula() -> None:
    torch.manual_seed(0)
    logits, inputs = torch.randn(3, PIXELS, dtype=torch.float64), torch.rand(3, PIXELS, dtype=torch.float64)
    p = 1 / (1 + (-logits).exp())
    expected = (inputs * p.log() + (1 - inputs) * (1 - p).log()).sum(1)
    torch.testing.assert_close(vae.log_bernoulli(logits, inputs), expected, rtol=1e-12, atol=0)


def test_importance_samples_rise_from_the_bound_to_the_likelihood() -> None:
    """With a code of one number, `log p(x) = log int p(x|z) p(z) dz` can be had by quadrature."""
    torch.manual_seed(0)
    made = {name: 2 * each.detach() for name, each in params(latent=1).items()}
    # Wider than the posterior, as samples of a narrower one would have weights of no finite variance.
    made["encoder.1.weight"] /= 10
    made["encoder.1.bias"] = torch.tensor([0.3, 0.4], dtype=torch.float64)
    inputs = torch.rand(4, PIXELS, dtype=torch.float64)
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    normal = torch.distributions.Normal(z.new_zeros(()), z.new_ones(()))
    logits = vae.decode(made, z[:, None])
    exact = torch.stack(
        [
            torch.trapezoid((vae.log_bernoulli(logits, x.expand(len(z), -1)) + normal.log_prob(z)).exp(), z).log()
            for x in inputs
        ]
    )
    close = vae.log_likelihood(made, inputs, torch.randn(3_000, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(close, exact, rtol=0, atol=0.01)
    many = inputs.repeat(20_000, 1)
    bound = vae.bound(made, many).view(-1, 4).mean(0)
    assert (bound < exact - 0.02).all()
    single = vae.log_likelihood(made, many, torch.randn(1, len(many), 1, dtype=torch.float64)).view(-1, 4).mean(0)
    torch.testing.assert_close(single, bound, rtol=0, atol=0.02)


def test_a_generator_has_its_seed() -> None:
    one, other = params(), params()
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert {name: tuple(each.shape) for name, each in one.items()} == {
        "encoder.0.weight": (4, PIXELS),
        "encoder.0.bias": (4,),
        "encoder.1.weight": (4, 4),
        "encoder.1.bias": (4,),
        "decoder.0.weight": (4, 2),
        "decoder.0.bias": (4,),
        "decoder.1.weight": (PIXELS, 4),
        "decoder.1.bias": (PIXELS,),
    }


def second_task(scenario: Scenario, **settings: Any) -> tuple[DGR, Learner, Batch, Network]:
    """DGR within the second task, and the solver of the first."""
    dgr, learner = DGR(latent=3, hidden=(5,), **settings), learner_for(scenario)
    tasks, solvers = stream(scenario), []
    for event in loop.train(learner, dgr, tasks, Schedule(batch_size=8, steps=4)):
        if isinstance(event, TaskDone):
            solvers.append(copy.deepcopy(learner.model).eval())
        if isinstance(event, loop.Step) and event.task.index == 1 and learner.clock.step == 2:
            break
    split = tasks.tasks[1].train
    return dgr, learner, Batch(split.inputs, split.targets, 1), solvers[0]


def generator_loss(dgr: DGR, inputs: Tensor) -> Tensor:
    return -vae.bound(dgr.generator, inputs).mean() / PIXELS


@pytest.mark.parametrize("scenario", list(Scenario))
@pytest.mark.parametrize("targets", ["hard", "soft"])
@pytest.mark.parametrize("share", [None, 0.2])
def test_new_and_replayed_losses_are_weighed(scenario: Scenario, targets: str, share: float | None) -> None:
    """Slowly, with the same random numbers: the previous generator and solver make the replay, weighed 1 - 1/t."""
    dgr, learner, batch, solver = second_task(scenario, targets=targets, new_share=share)
    logits = learner.model(batch.inputs, 1)
    entropy = F.cross_entropy(logits, batch.targets)
    torch.manual_seed(5)
    found = dgr.loss(learner, batch, logits, entropy)

    torch.manual_seed(5)
    new = entropy + generator_loss(dgr, batch.inputs)
    replayed = vae.draw(dgr.old_generator, torch.randn(SAMPLES, 3, dtype=torch.float64))
    assert replayed.shape == batch.inputs.shape
    old = solver(replayed, 0).detach()
    student = learner.model(replayed, 0 if scenario is Scenario.TASK else 1)
    if targets == "hard":
        answer = F.cross_entropy(student, old.argmax(1))
    else:
        p, log_q = (old / 2).softmax(1), (student / 2).log_softmax(1)
        answer = -4 * (p * log_q[:, : p.shape[1]]).sum(1).mean()
    r = 0.5 if share is None else share
    expected = r * new + (1 - r) * (answer + generator_loss(dgr, replayed))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_replay_comes_from_the_previous_scholar() -> None:
    dgr, learner, *_ = second_task(Scenario.CLASS)
    torch.manual_seed(5)
    before = dgr._draw(4, None)
    with torch.no_grad():
        for each in dgr.generator.values():
            each += 1.0
    torch.manual_seed(5)
    torch.testing.assert_close(dgr._draw(4, None), before, rtol=0, atol=0)
    dgr.after_task(learner, stream(Scenario.CLASS).tasks[1])
    torch.manual_seed(5)
    assert not torch.equal(dgr._draw(4, None), before)


def test_the_share_falls_with_the_tasks() -> None:
    shares = []
    for tasks in (2, 3):
        dgr = DGR(latent=3, hidden=(5,))
        learner = trained(dgr, Scenario.DOMAIN, tasks=tasks - 1)
        task = stream(Scenario.DOMAIN).tasks[tasks - 1]
        dgr.before_task(learner, task)
        losses = []
        for added in (0.0, 60.0):
            torch.manual_seed(1)
            batch = Batch(task.train.inputs, task.train.targets, tasks - 1)
            losses.append(dgr.loss(learner, batch, torch.empty(0), torch.tensor(added)))
        shares.append(float((losses[1] - losses[0]).detach()) / 60)
    assert shares == pytest.approx([1 / 2, 1 / 3])


def test_answers_are_averaged_over_the_heads_of_old_tasks() -> None:
    dgr = DGR(latent=3, hidden=(5,), new_share=0.0)
    learner = trained(dgr, Scenario.TASK, tasks=2)
    task = stream(Scenario.TASK).tasks[2]
    learner.clock.task = 2
    loop.grow(learner, task)
    dgr.before_task(learner, task)
    solver = copy.deepcopy(learner.model)
    with torch.no_grad():
        for each in [*learner.params.values(), *dgr.generator.values()]:
            each += 0.2
    batch = Batch(task.train.inputs, task.train.targets, 2)
    torch.manual_seed(5)
    found = dgr.loss(learner, batch, torch.empty(0), torch.zeros((), dtype=torch.float64))
    torch.manual_seed(5)
    generator_loss(dgr, batch.inputs)
    replayed = vae.draw(dgr.old_generator, torch.randn(SAMPLES, 3, dtype=torch.float64))
    terms = [F.cross_entropy(learner.model(replayed, k), solver(replayed, k).argmax(1)) for k in range(2)]
    expected = (terms[0] + terms[1]) / 2 + generator_loss(dgr, replayed)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def two_blots(scenario: Scenario) -> Stream:
    """Task k has its classes at pixels 2k and 2k + 1: what a generator makes can be told."""
    made = []
    for task in stream(scenario).tasks:
        inputs = torch.full((SAMPLES, PIXELS), 0.02, dtype=torch.float64)
        inputs[torch.arange(SAMPLES), 2 * task.index + torch.arange(SAMPLES) % CLASSES] = 0.98
        split = replace(task.train, inputs=inputs)
        made.append(replace(task, train=split, test=split))
    return replace(stream(scenario), tasks=tuple(made))


@pytest.mark.parametrize(("share", "low", "high"), [(None, 0.1, 0.3), (1.0, 0.0, 0.05)])
def test_the_generator_remembers_by_its_replay(share: float | None, low: float, high: float) -> None:
    """Each pixel is lit in a sixth of all samples, and in none of the last task's where that is all that counts."""
    dgr, learner = DGR(latent=2, hidden=(32,), new_share=share), learner_for(Scenario.CLASS)
    for _ in loop.train(learner, dgr, two_blots(Scenario.CLASS), Schedule(batch_size=24, steps=150)):
        pass
    torch.manual_seed(0)
    mean = dgr._draw(400, None).mean(0)[:4]
    assert low < float(mean.min())
    assert float(mean.max()) < high


@pytest.mark.parametrize("scenario", [Scenario.TASK, Scenario.CLASS])
def test_a_conditional_generator_makes_the_class_that_it_is_asked_for(scenario: Scenario) -> None:
    dgr, learner = DGR(latent=2, hidden=(32,), conditional=True), learner_for(scenario)
    for _ in loop.train(learner, dgr, two_blots(scenario), Schedule(batch_size=24, steps=150)):
        pass
    torch.manual_seed(0)
    labels = torch.arange(6).repeat_interleave(20)
    assert (dgr.generate(labels).argmax(1) == labels).double().mean() > 0.95


def test_conditional_replay_draws_labels_evenly() -> None:
    assert replay.even(20, 4, torch.device("cpu")).bincount().tolist() == [5, 5, 5, 5]
    assert len(replay.even(3, 4, torch.device("cpu")).unique()) == 3


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_of_conditional_replay_each_old_head_has_the_samples_of_its_task(targets: str) -> None:
    dgr = DGR(latent=2, hidden=(4,), conditional=True, targets=targets)
    learner = trained(dgr, Scenario.TASK)
    # As at the start of a fourth task.
    dgr.outputs.append(CLASSES)
    replayed, labels = torch.rand(9, PIXELS, dtype=torch.float64), torch.tensor([0, 5, 2, 3, 1, 0, 4, 4, 5])
    with torch.no_grad():
        for each in learner.params.values():
            each += 0.3 * torch.randn_like(each)
    teacher, terms = dgr.old_solver.network(learner), []
    for row, label in zip(replayed, labels.tolist(), strict=True):
        old = teacher(row[None], label // CLASSES).detach()
        new = learner.model(row[None], label // CLASSES)
        if targets == "hard":
            terms.append(F.cross_entropy(new, old.argmax(1)))
        else:
            terms.append(-4 * ((old / 2).softmax(1) * (new / 2).log_softmax(1)).sum())
    torch.testing.assert_close(dgr._solver_loss(learner, replayed, labels), torch.stack(terms).mean())


def test_shared_labels_share_the_generators_table() -> None:
    dgr = DGR(latent=2, hidden=(4,), conditional=True)
    trained(dgr, Scenario.DOMAIN)
    assert dgr.generate(torch.arange(CLASSES)).shape == (CLASSES, PIXELS)
    with pytest.raises(InputError, match="asked for class 2, and it has seen 0 to 1"):
        dgr.generate(torch.tensor([0, 2]))


def test_a_generator_refuses_classes_that_it_never_saw() -> None:
    dgr = DGR(latent=2, hidden=(4,), conditional=True)
    with pytest.raises(InputError, match="asked for class 0, and it has seen none"):
        dgr.generate(torch.tensor([0]))
    trained(dgr, Scenario.CLASS, tasks=2)
    with pytest.raises(InputError, match="asked for class 4, and it has seen 0 to 3"):
        dgr.generate(torch.tensor([3, 4]))
    with pytest.raises(InputError, match="asked for class -1"):
        dgr.generate(torch.tensor([-1]))
    with pytest.raises(InputError, match="only where conditional is set"):
        DGR().generate(torch.tensor([0]))


GENERATIVE = [("dgr", Scenario.DOMAIN), ("bi-r", Scenario.CLASS), ("generative-classifier", Scenario.CLASS)]


@pytest.mark.parametrize(("name", "scenario"), GENERATIVE)
def test_inputs_outside_0_to_1_are_refused(name: str, scenario: Scenario) -> None:
    task = stream(scenario).tasks[0]
    one = torch.ones(1, dtype=torch.float64)
    odd = {
        "run from -0.9": replace(task.train, mean=one, std=one),
        "run from .* to 2:": replace(task.train, inputs=task.train.inputs.round() * 2),
        "whole numbers": replace(task.train, inputs=torch.randint(9, (SAMPLES, PIXELS))),
    }
    for message, split in odd.items():
        with pytest.raises(InputError, match=f"method {name} .*{message}"):
            build(name, {}).before_task(learner_for(scenario), replace(task, train=split))
    with pytest.raises(InputError, match="hidden = "):
        build(name, {"hidden": (3, 0)}).before_task(learner_for(scenario), task)


def test_a_generator_goes_on_training_where_the_optimiser_is_kept() -> None:
    """What the optimiser gets task by task is what a resumed run gives it, labels of later tasks left out."""
    dgr = DGR(latent=2, hidden=(4,), conditional=True)
    learner = trained(dgr, Scenario.CLASS)
    names = []
    for index in range(3):
        learner.clock.task = index
        names.append({name for name in dgr.trainable(learner) if "labels" in name})
    assert [len(each) for each in names] == [1, 2, 3]
    assert names[0] < names[1] < names[2]


def test_the_density_of_codes_is_a_gaussian() -> None:
    torch.manual_seed(0)
    codes, mean, logvar = torch.randn(3, 4, 2, dtype=torch.float64)
    expected = torch.distributions.Normal(mean, (logvar / 2).exp()).log_prob(codes).sum(-1)
    found = vae.log_normal(codes, mean, logvar) - math.log(2 * math.pi)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def within_third_task(scenario: Scenario, **settings: Any) -> tuple[BIR, Learner, Batch, Network]:
    """BI-R within the third task, and the network after the second."""
    bir, learner = BIR(latent=3, **{"hidden": (5, 4), **settings}), learner_for(scenario)
    tasks, networks = stream(scenario), []
    for event in loop.train(learner, bir, tasks, Schedule(batch_size=8, steps=4)):
        if isinstance(event, TaskDone):
            networks.append(copy.deepcopy(learner.model).eval())
        if isinstance(event, loop.Step) and event.task.index == 2 and learner.clock.step == 2:
            break
    split = tasks.tasks[2].train
    features = learner.model.features(split.inputs)
    return bir, learner, Batch(split.inputs, split.targets, 2, features=features), networks[1]


def slow_generative(bir: BIR, learner: Learner, inputs: Tensor, known: Tensor, contexts: Tensor) -> Tensor:
    """The bound of each sample by itself: the reparameterised code, the mixture and the gates class by class."""
    means, logvars = replay.table(bir.generator, "mean"), replay.table(bir.generator, "logvar")
    noise = torch.randn(len(inputs), 3, dtype=torch.float64)
    tables = [gating.drawn(learner.seed, context, (4, 5), bir.gated) for context in range(contexts.shape[1])]
    g, normal, total = bir.generator, torch.distributions.Normal, torch.zeros((), dtype=torch.float64)
    for x, e, p, c in zip(inputs, noise, known, contexts, strict=True):
        mean, logvar = (learner.model.trunk(x) @ g["encoder.0.weight"].T + g["encoder.0.bias"]).split(3)
        q = normal(mean, (logvar / 2).exp())
        z = mean + (logvar / 2).exp() * e
        densities = [normal(m, (s / 2).exp()).log_prob(z).sum().exp() for m, s in zip(means, logvars, strict=True)]
        prior = torch.log(sum(share * density for share, density in zip(p, densities, strict=True)))
        hidden = z
        for layer in range(2):
            gate = sum(share * table[layer].double() for share, table in zip(c, tables, strict=True))
            hidden = gate * torch.relu(g[f"decoder.{layer}.weight"] @ hidden + g[f"decoder.{layer}.bias"])
        pixels = torch.sigmoid(g["decoder.2.weight"] @ hidden + g["decoder.2.bias"])
        bernoulli = (x * pixels.log() + (1 - x) * (1 - pixels).log()).sum()
        total = total + (q.log_prob(z).sum() - prior - bernoulli) / PIXELS
    return total / len(inputs)


@pytest.mark.parametrize("scenario", list(Scenario))
@pytest.mark.parametrize("share", [None, 0.2])
def test_brain_inspired_replay_is_its_equation(scenario: Scenario, share: float | None) -> None:
    bir, learner, batch, old = within_third_task(scenario, new_share=share, gated=0.5, temperature=1.7)
    torch.manual_seed(5)
    found = bir.loss(learner, batch, torch.empty(0), torch.tensor(0.25, dtype=torch.float64))

    torch.manual_seed(5)
    domain, told = scenario is Scenario.DOMAIN, scenario is Scenario.TASK
    modes = CLASSES if domain else 3 * CLASSES
    known = F.one_hot(batch.targets + (2 * CLASSES if told else 0), modes).double()
    third = F.one_hot(torch.full((SAMPLES,), 2), 3).double()
    new = 0.25 + slow_generative(bir, learner, batch.inputs, known, third if domain else known)
    inputs, tasks = bir.replayed(learner, SAMPLES)
    wanted, distilled = torch.zeros(SAMPLES, modes, dtype=torch.float64), 0.0
    for i, (x, task) in enumerate(zip(inputs, tasks.tolist(), strict=True)):
        head = task if told else 2
        before, now = (net(x[None], 0 if domain else head)[0] / 1.7 for net in (old, learner.model))
        if scenario is Scenario.CLASS:
            assert len(before) == 2 * CLASSES
        p, log_q = before.detach().softmax(0), now.log_softmax(0)
        distilled -= 1.7**2 * float((p * log_q.detach()[: len(p)]).sum()) / SAMPLES
        first = task * CLASSES if told else 0
        wanted[i, first : first + len(p)] = p
    generative = slow_generative(bir, learner, inputs, wanted, F.one_hot(tasks, 3).double() if domain else wanted)
    r = 1 / 3 if share is None else share
    expected = r * new + (1 - r) * (distilled + generative)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("scenario", list(Scenario))
def test_brain_inspired_replay_decodes_the_old_modes_evenly(scenario: Scenario) -> None:
    """Modes without any width: each decodes to the one input that its class, or its task, has."""
    bir, learner, *_ = within_third_task(scenario, gated=0.5, hidden=(32, 32))
    for name in bir.old_generator:
        if name.startswith("logvar."):
            bir.old_generator[name].fill_(-torch.inf)
    inputs, tasks = bir.replayed(learner, 40)
    kinds, counts = torch.cat([inputs, tasks[:, None]], 1).unique(dim=0, return_counts=True)
    assert counts.tolist() == [10] * 4
    assert kinds[:, -1].tolist().count(0.0) == kinds[:, -1].tolist().count(1.0) == 2
    # Neither what is learned now, nor the task at hand, has a part in it.
    with torch.no_grad():
        for each in bir.generator.values():
            each += 1.0
    again, _ = bir.replayed(learner, 40)
    torch.testing.assert_close(again.unique(dim=0), inputs.unique(dim=0), rtol=1e-12, atol=0)


def test_the_trunk_learns_to_reconstruct() -> None:
    bir, learner, batch, _ = within_third_task(Scenario.CLASS)
    loss = bir.loss(learner, batch, torch.empty(0), torch.zeros((), dtype=torch.float64))
    found = torch.autograd.grad(loss, list(learner.model.trunk.parameters()))
    assert all(each.any() for each in found)


@pytest.mark.parametrize("scenario", [Scenario.TASK, Scenario.CLASS])
def test_each_class_is_replayed_as_it_looks(scenario: Scenario) -> None:
    bir, learner = BIR(latent=2, hidden=(32,)), learner_for(scenario)
    for event in loop.train(learner, bir, two_blots(scenario), Schedule(batch_size=24, steps=150)):
        if isinstance(event, TaskDone) and event.task.index == 1:
            break
    bir.outputs.append(CLASSES)
    torch.manual_seed(0)
    inputs, tasks = bir.replayed(learner, 400)
    lit = inputs.argmax(1)
    assert (lit // CLASSES == tasks).double().mean() > 0.95
    assert (lit.bincount(minlength=4)[:4] - 100).abs().max() <= 20


def test_the_modes_of_later_tasks_wait_for_them() -> None:
    bir = BIR(latent=2, hidden=(4,))
    learner = trained(bir, Scenario.CLASS)
    sizes = []
    for index in range(3):
        learner.clock.task = index
        sizes.append(sum(name.startswith(("generator.mean", "generator.logvar")) for name in bir.trainable(learner)))
    assert sizes == [2, 4, 6]


@dataclass
class Watch(Method):
    """Notes how many samples the methods of a chain are given."""

    seen: list[int] = transient(list)

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        self.seen.append(len(batch.inputs))
        return loss


def test_replay_leaves_the_batch_of_a_chain_alone() -> None:
    watch = Watch()
    trained(Chain({"dgr": DGR(latent=2, hidden=(4,)), "watch": watch}), Scenario.CLASS, steps=3)
    assert watch.seen == [8] * 9


@pytest.mark.parametrize("other", [name for name, kind in METHODS.items() if kind.family == "importance"])
def test_importance_is_of_the_network_alone_where_a_generator_learns_too(other: str) -> None:
    held = build(other, {"strength": 1.0})
    learner = trained(Chain({other: held, "dgr": DGR(latent=2, hidden=(4,))}), Scenario.TASK)
    assert held.anchor.weight.keys() == tree.parameters(learner.model).keys()  # type: ignore[attr-defined]
    assert any(each.any() for each in held.anchor.weight.values())  # type: ignore[attr-defined]


def test_the_optimiser_has_the_generator_and_the_learners_parameters_have_it_not() -> None:
    dgr = DGR(latent=2, hidden=(4,))
    learner = trained(dgr, Scenario.TASK)
    assert learner.params.keys() == tree.parameters(learner.model).keys()
    assert learner.trained.keys() == {*learner.params, *(f"generator.{name}" for name in dgr.generator)}
    moved = {id(each) for group in learner.optimizer.param_groups for each in group["params"]}
    assert moved == {id(each) for each in learner.trained.values()}


def test_the_likeliest_class_is_the_answer() -> None:
    method, learner = GenerativeClassifier(latent=2, hidden=(8,), samples=20), learner_for(Scenario.CLASS)
    tasks = two_blots(Scenario.CLASS)
    for event in loop.train(learner, method, tasks, Schedule(batch_size=24, steps=60)):
        if isinstance(event, TaskDone):
            seen = tasks.tasks[: event.task.index + 1]
            for task in seen:
                answers = method.logits(learner, task.test.inputs, 0)
                assert answers.shape == (SAMPLES, CLASSES * len(seen))
                assert torch.equal(answers.argmax(1), task.test.targets)
    assert (method.generate(4, 30).mean(0).argmax()) == 4


def test_answers_are_importance_sampled_likelihoods() -> None:
    method = GenerativeClassifier(latent=2, hidden=(8,), samples=4)
    learner = trained(method, Scenario.CLASS, tasks=2)
    inputs = stream(Scenario.CLASS).tasks[0].test.inputs[:3]
    drawn = randomness.generator(learner.seed, "importance samples")
    noise = torch.randn(4, 3, 2, generator=drawn).double()
    found = method.logits(learner, inputs, 1)
    torch.testing.assert_close(method.logits(learner, inputs, 0), found, rtol=0, atol=0)
    normal = torch.distributions.Normal
    for label in range(4):
        generator = method.generators[str(label)]
        mean, logvar = vae.encode(generator, inputs)
        q, p = normal(mean, logvar.mul(0.5).exp()), normal(torch.zeros_like(mean), torch.ones_like(mean))
        total = torch.zeros(3, dtype=torch.float64)
        for each in noise:
            z = mean + logvar.mul(0.5).exp() * each
            weight = vae.log_bernoulli(vae.decode(generator, z), inputs) + (p.log_prob(z) - q.log_prob(z)).sum(1)
            total += weight.exp() / 4
        torch.testing.assert_close(found[:, label], total.log(), rtol=1e-9, atol=0)


def test_each_class_learns_from_its_own_samples() -> None:
    method = GenerativeClassifier(latent=2, hidden=(8,))
    learner = trained(method, Scenario.CLASS, tasks=1)
    before = {label: tree.snapshot(each) for label, each in method.generators.items()}
    task = stream(Scenario.CLASS).tasks[0]
    only = torch.nonzero(task.train.targets == 1).flatten()
    inputs, targets = task.train.batch(only)
    loss = method.loss(learner, Batch(inputs, targets, 0), torch.empty(0), torch.empty(0))
    learner.clock.task = 0
    found = torch.autograd.grad(loss, list(method.trainable(learner).values()), allow_unused=True)
    used = dict(zip(method.trainable(learner), found, strict=True))
    assert all((each is None) == name.startswith("generators.0.") for name, each in used.items())

    for _ in loop.train(learner_at(learner, 1), method, stream(Scenario.CLASS), Schedule(batch_size=8, steps=3)):
        pass
    for label, old in before.items():
        torch.testing.assert_close(tree.snapshot(method.generators[label]), old, rtol=0, atol=0)


def learner_at(learner: Learner, task: int) -> Learner:
    learner.clock.task = task
    return learner


def test_the_network_takes_no_part_in_a_generative_classifier() -> None:
    method, learner = GenerativeClassifier(latent=2, hidden=(8,)), learner_for(Scenario.CLASS)
    before = tree.snapshot(tree.weights(learner.model.trunk))
    for _ in loop.train(learner, method, stream(Scenario.CLASS), Schedule(batch_size=8, steps=3)):
        pass
    torch.testing.assert_close(tree.snapshot(tree.weights(learner.model.trunk)), before, rtol=0, atol=0)


def test_a_generative_classifier_refuses_what_it_cannot_do() -> None:
    with pytest.raises(InputError, match="generator of class 3 was asked for, and the classes seen are none"):
        GenerativeClassifier().generate(3, 1)
    method = GenerativeClassifier(latent=2, hidden=(8,))
    trained(method, Scenario.CLASS, tasks=1)
    with pytest.raises(InputError, match="generator of class 3 was asked for, and the classes seen are 0, 1"):
        method.generate(3, 1)
    with pytest.raises(InputError, match="method generative-classifier cannot do scenario task: it can do class"):
        run(recipe({"stream": "split", "scenario": "task", "method": "generative-classifier"}))
