"""Each method, as it goes through the real training loop, against slow references in float64."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from methods import made_up
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong import curvature, tree
from lifelong.learner import Batch, Learner
from lifelong.methods import EWC, L2, MAS, SCP, SI, Chain, FeatureExtraction, LwF, Method, Naive, RWalk
from lifelong.methods.method import transient
from lifelong.models import Network, with_head
from lifelong.streams import Scenario, Stream, Task
from lifelong.training import loop
from lifelong.training.loop import Schedule
from lifelong.training.optimizers import make_optimizer
from lifelong.tree import Params

SAMPLES, FEATURES, CLASSES = 30, 4, 3


def stream(scenario: Scenario, tasks: int = 3) -> Stream:
    return made_up.stream(scenario, tasks, samples=SAMPLES, features=FEATURES, classes=CLASSES)


def network(scenario: Scenario, tasks: int = 3) -> Network:
    def trunk() -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh())

    return made_up.network(scenario, trunk, features=FEATURES, classes=CLASSES, tasks=tasks)


@dataclass
class Recorder(Method):
    """Stores every point of the path, and the gradient of the cross-entropy there, worked out anew."""

    thetas: list[list[Params]] = transient(list)
    gradients: list[list[Params]] = transient(list)
    models: list[Network] = transient(list)

    def before_task(self, learner: Learner, task: Task) -> None:
        self.thetas.append([tree.snapshot(learner.params)])
        self.gradients.append([])

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        fresh = F.cross_entropy(learner.model(batch.inputs, batch.task), batch.targets)
        found = torch.autograd.grad(fresh, list(learner.params.values()), allow_unused=True)
        self.gradients[-1].append(
            {
                name: torch.zeros_like(learner.params[name]) if each is None else each
                for name, each in zip(learner.params, found, strict=True)
            }
        )
        return loss

    def after_step(self, learner: Learner) -> None:
        self.thetas[-1].append(tree.snapshot(learner.params))

    def after_task(self, learner: Learner, task: Task) -> None:
        self.models.append(copy.deepcopy(learner.model))


def trained(
    methods: dict[str, Method],
    scenario: Scenario = Scenario.DOMAIN,
    *,
    tasks: int = 3,
    optimizer: str = "sgd",
    lr: float = 0.1,
    clip: float | None = None,
    **settings: Any,
) -> tuple[Recorder, Learner]:
    """Take `methods`, chained after a recorder, through the stream."""
    recorder = Recorder()
    learner = Learner(
        network(scenario, tasks), make_optimizer(optimizer, lr, settings), scenario, seed=3, planned_tasks=tasks
    )
    chain = Chain({"recorder": recorder, **methods})
    for _ in loop.train(learner, chain, stream(scenario, tasks), Schedule(batch_size=10, steps=13, clip=clip)):
        pass
    return recorder, learner


def assert_close(found: Params, expected: Params) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def zeros_for(reference: Params, names: Params) -> Params:
    return {name: reference.get(name, torch.zeros_like(each)) for name, each in names.items()}


def slow_si(recorder: Recorder, xi: float) -> tuple[Params, Params]:
    omega: Params = {}
    for thetas, gradients in zip(recorder.thetas, recorder.gradients, strict=True):
        omega = zeros_for(omega, thetas[0])
        for name in omega:
            w = torch.zeros_like(omega[name])
            for k, gradient in enumerate(gradients):
                w -= gradient[name] * (thetas[k + 1][name] - thetas[k][name])
            moved = thetas[-1][name] - thetas[0][name]
            omega[name] = omega[name] + w.clamp(min=0) / (moved**2 + xi)
    return omega, recorder.thetas[-1][-1]


@pytest.mark.parametrize("scenario", list(Scenario))
@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "adam", "lr": 0.01},
        {"optimizer": "sgd", "clip": 0.05},
    ],
    ids=["sgd", "momentum", "adam", "clipped"],
)
def test_si_follows_the_path(scenario: Scenario, training: dict[str, Any]) -> None:
    si = SI(strength=5.0, xi=0.01)
    recorder, _ = trained({"si": si}, scenario, **training)
    omega, end = slow_si(recorder, 0.01)
    assert_close(si.anchor.weight, omega)
    assert_close(si.anchor.centre, end)
    # The anchor did pull, so the gradient that made the steps was another one.
    without, _ = trained({"si": SI(strength=0.0, xi=0.01)}, scenario, **training)
    assert not torch.equal(without.thetas[-1][-1]["trunk.0.weight"], end["trunk.0.weight"])
    assert torch.equal(without.thetas[0][-1]["trunk.0.weight"], recorder.thetas[0][-1]["trunk.0.weight"])


@pytest.mark.parametrize("order", [("ewc", "si"), ("si", "ewc"), ("ewc", "rwalk"), ("rwalk", "ewc")])
def test_paths_see_the_unregularised_gradient_in_any_chain(order: tuple[str, str]) -> None:
    parts = {
        "ewc": EWC(strength=50.0, fisher="true"),
        "si": SI(strength=5.0, xi=0.01),
        "rwalk": RWalk(strength=5.0, xi=0.01, interval=5),
    }
    chosen = {name: parts[name] for name in order}
    recorder, _ = trained(chosen)
    if "si" in chosen:
        assert_close(parts["si"].anchor.weight, slow_si(recorder, 0.01)[0])
    else:
        assert_close(parts["rwalk"].anchor.weight, slow_rwalk(recorder, 0.01, 0.9, 5))
    alone, _ = trained({order[0]: copy.deepcopy(type(parts[order[0]])(strength=0.0))})
    assert not torch.equal(alone.thetas[-1][-1]["trunk.0.weight"], recorder.thetas[-1][-1]["trunk.0.weight"])


def test_both_anchors_of_a_chain_pull() -> None:
    def end(**methods: Method) -> Tensor:
        return trained(methods)[0].thetas[-1][-1]["trunk.0.weight"]

    one, other = end(ewc=EWC(strength=50.0)), end(l2=L2(strength=1.0))
    both, turned = end(ewc=EWC(strength=50.0), l2=L2(strength=1.0)), end(l2=L2(strength=1.0), ewc=EWC(strength=50.0))
    torch.testing.assert_close(both, turned, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(both, one, rtol=1e-4)
    assert not torch.allclose(both, other, rtol=1e-4)


def test_si_on_a_quadratic_loss() -> None:
    h = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    best = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    start = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    lr, steps, xi = 0.01, 200, 0.1
    theta = start.clone().requires_grad_()
    learner: Any = SimpleNamespace(params={"theta": theta})
    si, task = SI(strength=1.0, xi=xi), stream(Scenario.DOMAIN).tasks[0]
    si.before_task(learner, task)
    for _ in range(steps):
        theta.grad = None
        (h * (theta - best) ** 2 / 2).sum().backward()
        si.after_backward(learner)
        si.before_step(learner)
        with torch.no_grad():
            theta -= lr * theta.grad
        si.after_step(learner)

    si.path.settle(learner.params, si.anchor.centre)
    # theta_k - best = q^k (start - best), a geometric series.
    q, away = 1 - lr * h, start - best
    w = h * away**2 * (1 - q ** (2 * steps)) / (2 - lr * h)
    torch.testing.assert_close(si.path.integral["theta"], w, rtol=1e-10, atol=0)
    fall = (h * away**2 / 2).sum() - (h * (theta.detach() - best) ** 2 / 2).sum()
    torch.testing.assert_close(si.path.integral["theta"].sum(), fall, rtol=0.02, atol=0)

    si.after_task(learner, task)
    moved = away * (q**steps - 1)
    torch.testing.assert_close(si.anchor.weight["theta"], w / (moved**2 + xi), rtol=1e-9, atol=0)
    torch.testing.assert_close(si.anchor.centre["theta"], theta.detach(), rtol=0, atol=0)


def test_si_clips_contributions_that_raised_the_loss() -> None:
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    learner: Any = SimpleNamespace(params={"theta": theta})
    si, task = SI(xi=1.0), stream(Scenario.DOMAIN).tasks[0]
    si.before_task(learner, task)
    theta.grad = torch.tensor([2.0, 2.0], dtype=torch.float64)
    si.after_backward(learner)
    with torch.no_grad():
        theta += torch.tensor([1.0, -1.0])
    si.after_step(learner)
    si.after_task(learner, task)
    assert si.anchor.weight["theta"].tolist() == [0.0, 2.0 / (1 + 1.0)]


def slow_rwalk(recorder: Recorder, xi: float, alpha: float, interval: int) -> Params:
    """The equations of RWalk's docstring with every point of the path at hand."""
    fisher: Params = {}
    score: Params = {}
    weight: Params = {}
    for thetas, gradients in zip(recorder.thetas, recorder.gradients, strict=True):
        fisher, new = zeros_for(fisher, thetas[0]), zeros_for({}, thetas[0])
        for first in range(0, len(gradients), interval):
            last = min(first + interval, len(gradients))
            for name in fisher:
                steps = range(first, last)
                fall = -sum(gradients[k][name] * (thetas[k + 1][name] - thetas[k][name]) for k in steps)
                moved = thetas[last][name] - thetas[first][name]
                new[name] = new[name] + fall.clamp(min=0) / (fisher[name] * moved**2 / 2 + xi)
                squares = sum(gradients[k][name] ** 2 for k in steps) / (last - first)
                fisher[name] = alpha * squares + (1 - alpha) * fisher[name]
        score = {name: (score[name] + each) / 2 if name in score else each for name, each in new.items()}
        f, s = unit(fisher), unit(score)
        weight = {name: f[name] + s[name] for name in f}
    return weight


def unit(importance: Params) -> Params:
    everything = torch.cat([each.flatten() for each in importance.values()])
    low, high = everything.min(), everything.max()
    return {name: (each - low) / (high - low) for name, each in importance.items()}


@pytest.mark.parametrize("scenario", list(Scenario))
@pytest.mark.parametrize("interval", [1, 5, 13, 40])
def test_rwalk_follows_its_equations(scenario: Scenario, interval: int) -> None:
    rwalk = RWalk(strength=3.0, xi=0.02, alpha=0.8, interval=interval)
    recorder, _ = trained({"rwalk": rwalk}, scenario, momentum=0.5)
    assert_close(rwalk.anchor.weight, slow_rwalk(recorder, 0.02, 0.8, interval))
    assert_close(rwalk.anchor.centre, recorder.thetas[-1][-1])
    assert max(float(each.max()) for each in rwalk.anchor.weight.values()) <= 2.0


def splits(scenario: Scenario) -> list[list[tuple[Tensor, Tensor]]]:
    return [[(task.train.inputs, task.train.targets)] for task in stream(scenario).tasks]


def fishers(recorder: Recorder, scenario: Scenario) -> list[Params]:
    return [
        curvature.fisher(model, lambda x, m=model, t=t: m(x, t), data, kind="true")
        for t, (model, data) in enumerate(zip(recorder.models, splits(scenario), strict=True))
    ]


@pytest.mark.parametrize("scenario", list(Scenario))
def test_ewc_sums_the_penalties_of_all_tasks(scenario: Scenario) -> None:
    ewc = EWC(strength=20.0, fisher="true")
    recorder, learner = trained({"ewc": ewc}, scenario)
    theta = {name: each.detach() + 0.3 for name, each in learner.params.items()}
    expected = torch.zeros((), dtype=torch.float64)
    slopes = {name: torch.zeros_like(each) for name, each in theta.items()}
    for fisher, thetas in zip(fishers(recorder, scenario), recorder.thetas, strict=True):
        for name, weight in fisher.items():
            slopes[name] += 20.0 * weight * (theta[name] - thetas[-1][name])
            expected += 10.0 * (weight * (theta[name] - thetas[-1][name]) ** 2).sum()
    free = {name: each.requires_grad_() for name, each in theta.items()}
    penalty = ewc.anchor.penalty(free, 20.0)
    found = dict(zip(free, torch.autograd.grad(penalty, list(free.values())), strict=True))
    assert_close(found, slopes)
    assert (
        0 < float(penalty.detach()) <= float(expected.detach()) * (1 + 1e-9)
    )  # they differ by a constant that is not negative


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
def test_online_ewc_decays(decay: float) -> None:
    ewc = EWC(strength=20.0, fisher="true", online=True, decay=decay)
    recorder, _ = trained({"ewc": ewc})
    first, second, third = fishers(recorder, Scenario.DOMAIN)
    expected = {name: decay**2 * first[name] + decay * second[name] + third[name] for name in third}
    assert_close(ewc.anchor.weight, expected)
    assert_close(ewc.anchor.centre, recorder.thetas[-1][-1])


def test_online_ewc_decays_the_heads_of_old_tasks() -> None:
    ewc = EWC(strength=20.0, fisher="true", online=True, decay=0.5)
    recorder, _ = trained({"ewc": ewc}, Scenario.TASK)
    first, _, _ = fishers(recorder, Scenario.TASK)
    name = "head.blocks.0.weight"
    assert_close({name: ewc.anchor.weight[name]}, {name: first[name] / 4})
    assert first[name].any()


@pytest.mark.parametrize("scenario", list(Scenario))
def test_mas_sums_over_tasks(scenario: Scenario) -> None:
    mas = MAS(strength=2.0)
    recorder, _ = trained({"mas": mas}, scenario)
    total: Params = {}
    for t, (model, data) in enumerate(zip(recorder.models, splits(scenario), strict=True)):
        omega = curvature.mas(model, lambda x, m=model, t=t: m(x, t), data)
        total = tree.add(zeros_for(total, omega), omega)
    assert_close(mas.anchor.weight, total)
    assert_close(mas.anchor.centre, recorder.thetas[-1][-1])


@dataclass
class Watcher(Method):
    """Keeps the network after every step, and the batch that it came of."""

    batches: list[Batch] = transient(list)
    models: list[Network] = transient(list)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        self.batches.append(batch)
        return batch

    def after_step(self, learner: Learner) -> None:
        self.models.append(copy.deepcopy(learner.model))


def test_online_mas_is_the_mean_over_batches_every_so_many_steps() -> None:
    mas, watcher = MAS(strength=2.0, online=True, interval=5), Watcher()
    trained({"watcher": watcher, "mas": mas})
    omegas = [
        curvature.mas(watcher.models[k], lambda x, k=k: watcher.models[k](x, 0), [(watcher.batches[k].inputs, None)])
        for k in range(4, 39, 5)
    ]
    assert len(omegas) == 7
    assert_close(mas.anchor.weight, {name: sum(each[name] for each in omegas) / 7 for name in omegas[0]})
    assert_close(mas.anchor.centre, tree.parameters(watcher.models[34]))
    # It pulls from the first measurement on, within a task.
    free = Watcher()
    trained({"watcher": free, "mas": MAS(strength=0.0, online=True, interval=5)})
    ends = [[tree.parameters(model) for model in each.models] for each in (free, watcher)]
    moved = [tree.norm(tree.sub(a, b)) for a, b in zip(*ends, strict=True)]
    assert not any(moved[:6])
    assert all(moved[6:])


@pytest.mark.parametrize("decay", [None, 0.3])
@pytest.mark.parametrize("normalize", [False, True])
def test_scp_accumulates(decay: float | None, normalize: bool) -> None:
    scp = SCP(strength=2.0, decay=decay, normalize_by_n=normalize)
    recorder, _ = trained({"scp": scp})
    gammas = [
        curvature.scp(model, lambda x, m=model, t=t: m(x, t), data, samples=SAMPLES)
        for t, (model, data) in enumerate(zip(recorder.models, splits(Scenario.DOMAIN), strict=True))
    ]
    total = tree.scale(gammas[0], 1 / SAMPLES if normalize else 1.0)
    for gamma in gammas[1:]:
        new = tree.scale(gamma, 1 / SAMPLES if normalize else 1.0)
        for name in total:
            total[name] = total[name] + new[name] if decay is None else decay * total[name] + (1 - decay) * new[name]
    assert_close(scp.anchor.weight, total)
    assert_close(scp.anchor.centre, recorder.thetas[-1][-1])


@pytest.mark.parametrize("scenario", list(Scenario))
def test_steps_descend_the_loss_and_the_penalty(scenario: Scenario) -> None:
    """With plain SGD the step is `lr` times the gradient of the cross-entropy plus that of the penalty."""
    l2, lr = L2(strength=0.7), 0.1
    recorder, _ = trained({"l2": l2}, scenario, lr=lr)
    for index, (thetas, gradients) in enumerate(zip(recorder.thetas, recorder.gradients, strict=True)):
        centre = recorder.thetas[index - 1][-1] if index else {}
        for k, gradient in enumerate(gradients):
            for name, each in gradient.items():
                # Heads of old tasks take no part in the step and stay where they are.
                away = thetas[k][name] - centre[name] if name in centre else torch.zeros_like(each)
                expected = thetas[k][name] - lr * (each + 0.7 * away)
                torch.testing.assert_close(thetas[k + 1][name], expected, rtol=1e-9, atol=1e-12)


def test_importance_is_measured_on_so_many_samples() -> None:
    whole, part = EWC(fisher="true"), EWC(fisher="true", samples=8)
    trained({"ewc": whole}, tasks=1)
    recorder, learner = trained({"ewc": part}, tasks=1)
    assert not torch.equal(whole.anchor.weight["trunk.0.bias"], part.anchor.weight["trunk.0.bias"])
    from lifelong import randomness

    generator = randomness.generator(learner.seed, "importance", 0)
    chosen = torch.randperm(SAMPLES, generator=generator)[:8]
    assert len(chosen.unique()) == 8
    split, model = stream(Scenario.DOMAIN).tasks[0].train.take(chosen), recorder.models[0]
    expected = curvature.fisher(model, lambda x: model(x, 0), [(split.inputs, split.targets)], kind="true")
    assert_close(part.anchor.weight, expected)


def lwf_at(
    scenario: Scenario, moved: float, net: Network | None = None, **settings: Any
) -> tuple[LwF, Learner, Batch, Network]:
    """LwF in the second task, the student `moved` away from its teacher."""
    lwf, tasks = LwF(**settings), stream(scenario).tasks
    learner = Learner(net or network(scenario), make_optimizer("sgd", 0.1, {}), scenario, planned_tasks=3)
    from lifelong.learner import grow

    grow(learner, tasks[0])
    lwf.before_task(learner, tasks[0])
    lwf.after_task(learner, tasks[0])
    teacher = copy.deepcopy(learner.model)
    grow(learner, tasks[1])
    lwf.before_task(learner, tasks[1])
    torch.manual_seed(0)
    with torch.no_grad():
        for each in learner.params.values():
            each += moved * torch.randn_like(each)
    return lwf, learner, Batch(tasks[1].train.inputs, tasks[1].train.targets, 1), teacher


def lwf_loss(lwf: LwF, learner: Learner, batch: Batch) -> tuple[Tensor, Tensor]:
    batch.features = learner.model.trunk(batch.inputs)
    logits = learner.model.head(batch.features, batch.task)
    entropy = F.cross_entropy(logits, batch.targets)
    return entropy, lwf.loss(learner, batch, logits, entropy)


@pytest.mark.parametrize("scenario", [Scenario.TASK, Scenario.DOMAIN])
def test_lwf_has_no_gradient_where_student_is_teacher(scenario: Scenario) -> None:
    lwf, learner, batch, _ = lwf_at(scenario, 0.0, new_share=0.0)
    _, loss = lwf_loss(lwf, learner, batch)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-14)
    for gradient in torch.autograd.grad(loss, list(learner.params.values()), allow_unused=True):
        assert gradient is None or float(gradient.abs().max()) < 1e-14


@pytest.mark.parametrize("scenario", list(Scenario))
@pytest.mark.parametrize("share", [None, 0.2])
def test_lwf_is_the_divergence_from_the_teacher(scenario: Scenario, share: float | None) -> None:
    lwf, learner, batch, teacher = lwf_at(scenario, 0.5, new_share=share, temperature=3.0, strength=1.5)
    entropy, loss = lwf_loss(lwf, learner, batch)
    old = 0 if scenario is Scenario.TASK else 1
    student = learner.model(batch.inputs, old)
    p = (teacher(batch.inputs, 0).detach() / 3.0).exp()
    q = (student / 3.0).exp()
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    # New classes of the class-incremental scenario have no mass in p and take theirs from the old ones in q.
    assert q.shape[1] == (2 * CLASSES if scenario is Scenario.CLASS else CLASSES)
    divergence = 9.0 * (p * (p / q[:, :CLASSES]).log()).sum(1).mean()
    r = 0.5 if share is None else share
    expected = r * entropy + (1 - r) * 1.5 * divergence
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    live = list(learner.params.values())
    for found, slow in zip(
        torch.autograd.grad(loss, live, retain_graph=True),
        torch.autograd.grad(expected, live),
        strict=True,
    ):
        torch.testing.assert_close(found, slow, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mask_unseen", [False, True])
def test_lwf_holds_the_outputs_that_the_old_network_answered_with(mask_unseen: bool) -> None:
    trunk = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh())
    sizes = {"classes": (CLASSES,) * 3, "outputs": 3 * CLASSES}
    net = with_head(trunk, "single", sample=torch.zeros(2, FEATURES), mask_unseen=mask_unseen, **sizes).double()
    lwf, learner, batch, teacher = lwf_at(Scenario.CLASS, 0.5, net, new_share=0.0, temperature=1.0)
    _, loss = lwf_loss(lwf, learner, batch)
    p, q = teacher(batch.inputs, 0).detach().softmax(1), learner.model(batch.inputs, 1).softmax(1)
    assert (p.shape[1], q.shape[1]) == ((CLASSES, 2 * CLASSES) if mask_unseen else (3 * CLASSES, 3 * CLASSES))
    expected = (p * (p / q[:, : p.shape[1]]).log()).sum(1).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scenario", [Scenario.TASK, Scenario.CLASS])
@pytest.mark.parametrize("training", [{"optimizer": "adam", "lr": 0.01}, {"momentum": 0.9, "weight_decay": 0.1}])
def test_lwf_warms_up_new_outputs_alone(scenario: Scenario, training: dict[str, Any]) -> None:
    recorder, _ = trained({"lwf": LwF(warm_up=0.4)}, scenario, **training)
    # 0.4 of 13 steps: those before the sixth.
    for index, path in enumerate(recorder.thetas):
        for name in path[0]:
            moved = [not torch.equal(now, before) for now, before in itertools.pairwise(each[name] for each in path)]
            new = name.startswith(f"head.blocks.{index}.")
            assert moved[:6] == [new or (index == 0 and not name.startswith("head.blocks."))] * 6, (index, name)
            assert any(moved[6:]) is (new or not name.startswith("head.") or scenario is not Scenario.TASK or index > 0)


def test_lwf_averages_over_the_heads_of_old_tasks() -> None:
    lwf = LwF(new_share=0.0, temperature=1.0)
    recorder, learner = trained({"lwf": lwf}, Scenario.TASK, tasks=3)
    from lifelong.learner import grow

    task = Task(3, "fourth", *[stream(Scenario.TASK).tasks[0].train] * 3, (0, 1, 2))
    learner.model.head.planned = (CLASSES,) * 4
    grow(learner, task)
    lwf.before_task(learner, task)
    with torch.no_grad():
        for each in learner.params.values():
            each += 0.1
    batch = Batch(task.train.inputs, task.train.targets, 3)
    _, loss = lwf_loss(lwf, learner, batch)
    terms = []
    for k in range(3):
        p = recorder.models[-1](batch.inputs, k).detach().softmax(1)
        q = learner.model(batch.inputs, k).softmax(1)
        terms.append((p * (p.log() - q.log())).sum(1).mean())
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-9, atol=0)


def test_lwf_follows_the_first_task_untouched() -> None:
    lwf, _ = trained({"lwf": LwF()}, tasks=1)
    naive, _ = trained({"naive": Naive()}, tasks=1)
    torch.testing.assert_close(lwf.thetas, naive.thetas, rtol=0, atol=0)


@pytest.mark.parametrize("learn_first", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_frozen_trunk_keeps_its_statistics(affine: bool, learn_first: bool) -> None:
    model = network(Scenario.TASK)
    norm = nn.BatchNorm1d(5, affine=affine).double()
    model.trunk.append(norm)  # type: ignore[operator]
    learner = Learner(model, make_optimizer("sgd", 0.1, {}), Scenario.TASK)
    means = [norm.running_mean.clone()]  # type: ignore[union-attr]
    for event in loop.train(learner, FeatureExtraction(learn_first), stream(Scenario.TASK), Schedule(10, steps=4)):
        if isinstance(event, loop.TaskDone):
            means.append(norm.running_mean.clone())  # type: ignore[union-attr]
    assert torch.equal(means[0], means[1]) is not learn_first
    assert torch.equal(means[1], means[2])
    assert torch.equal(means[2], means[3])
