"""Meta-gradients against finite differences, an unrolled loop over tasks in plain PyTorch, and closed forms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from meta.problems import WAYS, curves, flat, leaves, picture_tasks, pictures
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong import settings
from lifelong.meta import (
    ALGORITHMS,
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    Engine,
    Episodes,
    MetaLearner,
    MetaSGD,
    Problem,
    ProtoMAML,
    Reptile,
    Sinusoids,
    engine,
    task_network,
)
from lifelong.meta.episodes import accuracy, cross_entropy, squared_error
from lifelong.meta.inner_loop import Graph, InnerLoop
from lifelong.meta.network import FORMULATIONS, Formulation
from lifelong.meta.reptile import mini_batches
from lifelong.tree import Params

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def found(algorithm: MetaLearner, problem: Problem, episodes: Episodes, at_once: int = 2, iteration: int = 0) -> Params:
    meta = leaves(algorithm.parameters(problem))
    how = Engine(problem.network.formulation, at_once, threads=2)
    return engine.gradient(algorithm, problem, how, meta, algorithm.buffers(problem), episodes, iteration).gradient


def unrolled(problem: Problem, episodes: Episodes, steps: int, rate: float, first_order: bool) -> Params:
    """MAML as papers write it: a loop over tasks, PyTorch's own batch norm, autograd through the steps."""
    whole = nn.Sequential(copy.deepcopy(problem.network.trunk), copy.deepcopy(problem.network.head))
    for parent in list(whole.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "BatchNorm":
                plain = nn.BatchNorm2d(len(child.weight), track_running_stats=False).double()
                plain.load_state_dict(child.state_dict())
                setattr(parent, name, plain)
    start = {name: each.detach().requires_grad_() for name, each in whole.named_parameters()}
    total = torch.zeros((), dtype=torch.float64)
    for task in range(len(episodes)):
        weights = dict(start)
        for _ in range(steps):
            outputs = torch.func.functional_call(whole, weights, (episodes.support[task],))
            loss = F.cross_entropy(outputs, episodes.support_targets[task])
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=not first_order)
            weights = {name: w - rate * g for (name, w), g in zip(weights.items(), slopes, strict=True)}
        outputs = torch.func.functional_call(whole, weights, (episodes.query[task],))
        total = total + F.cross_entropy(outputs, episodes.query_targets[task]) / len(episodes)
    slopes = torch.autograd.grad(total, list(start.values()))
    return {
        name.replace("0.", "trunk.", 1) if name[0] == "0" else "head" + name[1:]: each
        for name, each in zip(start, slopes, strict=True)
    }


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_every_formulation_has_the_gradient_of_an_unrolled_loop(
    formulation: Formulation, first_order: bool, pool: bool
) -> None:
    problem, episodes = pictures(formulation, pool=pool), picture_tasks()
    expected = unrolled(problem, episodes, 2, 0.3, first_order)
    for algorithm in [MAML(steps=2, rate=0.3, first_order=first_order)] + [FOMAML(steps=2, rate=0.3)] * first_order:
        gradient = found(algorithm, problem, episodes)
        assert gradient.keys() == expected.keys()
        for name, each in gradient.items():
            torch.testing.assert_close(each, expected[name], **CLOSE)


def differences(function: Callable[[Params], Tensor], meta: Params, directions: int = 3) -> list[tuple[Tensor, Params]]:
    """Slopes of `function` along random directions, by central differences."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for _ in range(directions):
        way = {name: torch.randn(each.shape, generator=generator, dtype=each.dtype) for name, each in meta.items()}
        step = 1e-6
        high, low = (
            function({name: each.detach() + sign * step * way[name] for name, each in meta.items()}) for sign in (1, -1)
        )
        made.append(((high - low) / (2 * step), way))
    return made


DIFFERENTIABLE: dict[str, MetaLearner] = {
    "maml": MAML(steps=3, rate=0.3),
    "maml, clipped": MAML(steps=2, rate=0.3, clip=0.05),
    "maml++": MAML(steps=3, rate=0.3, learn_rates=True, multi_step_iterations=10),
    "meta-sgd": MetaSGD(steps=2),
    "anil": ANIL(steps=2, rate=0.3),
    "boil": BOIL(steps=2, rate=0.3),
    "proto-maml": ProtoMAML(steps=2, rate=0.1),
    "protonet": ALGORITHMS["protonet"](),
    "matching-net": ALGORITHMS["matching-net"](),
}


@pytest.mark.parametrize("statistics", ["transductive", "support"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_meta_gradient_is_that_of_finite_differences(name: str, statistics: str) -> None:
    algorithm, episodes = DIFFERENTIABLE[name], picture_tasks(tasks=2)
    problem = pictures("columns", statistics=statistics)
    gradient = found(algorithm, problem, episodes, iteration=3)

    def loss(meta: Params) -> Tensor:
        live = {key: each.requires_grad_() for key, each in meta.items()}
        return algorithm.loss(problem, live, episodes, 3)[0].mean().detach()

    for slope, way in differences(loss, algorithm.parameters(problem)):
        torch.testing.assert_close(flat(gradient) @ flat(way), slope, rtol=2e-5, atol=1e-8)


def small(name: str) -> MetaLearner:
    steps = {field.name: 2 for field in settings.fields(ALGORITHMS[name]) if field.name in ("steps", "test_steps")}
    return ALGORITHMS[name](**steps)


@pytest.mark.parametrize("statistics", ["transductive", "support"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_vectorised_is_looped(name: str, statistics: str) -> None:
    algorithm, episodes = small(name), picture_tasks(tasks=3)
    reference = pictures("loop", statistics=statistics)
    expected = found(algorithm, reference, episodes, at_once=1)
    held = algorithm.parameters(reference), algorithm.buffers(reference)
    looped = engine.answers(algorithm, reference, Engine("loop", 1), *held, episodes)
    for formulation in FORMULATIONS[:3]:
        problem = pictures(formulation, statistics=statistics)
        gradient = found(algorithm, problem, episodes, at_once=2)
        for key, each in gradient.items():
            # Adam's first moves are nearly signs, so rounding shows where a gradient is all but 0.
            close = CLOSE if name != "reptile" else {"rtol": 1e-3, "atol": 1e-6}
            torch.testing.assert_close(each, expected[key], **close)
        answers = engine.answers(algorithm, problem, Engine(formulation, 2, 2), *held, episodes)
        for ours, theirs in zip(answers, looped, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, each in ALGORITHMS.items() if issubclass(each, InnerLoop)])
def test_training_adapts_as_tests_do(name: str) -> None:
    algorithm, problem, episodes = small(name), pictures("grouped"), picture_tasks()
    assert isinstance(algorithm, InnerLoop)
    meta = leaves(algorithm.parameters(problem))
    tested = list(algorithm.path(problem, meta, episodes, 2, "none"))
    graphs: tuple[Graph, ...] = ("first", "second")
    for graph in graphs:
        for trained, expected in zip(algorithm.path(problem, meta, episodes, 2, graph), tested, strict=True):
            for key, each in expected.items():
                torch.testing.assert_close(trained[key], each)


def with_one_query(episodes: Episodes) -> Episodes:
    return replace(episodes, query=episodes.query[:, :1], query_targets=episodes.query_targets[:, :1])


def test_support_statistics_hide_queries_from_each_other() -> None:
    episodes = picture_tasks(tasks=2)
    alone = with_one_query(episodes)
    algorithm = MAML(test_steps=1)
    for statistics, same in (("support", True), ("transductive", False)):
        problem = pictures("grouped", statistics=statistics)
        meta, how = algorithm.parameters(problem), Engine("grouped", 2)
        whole, one = (engine.answers(algorithm, problem, how, meta, {}, each)[1] for each in (episodes, alone))
        assert torch.allclose(whole[:, :1], one) == same


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_per_step_statistics_are_those_of_training_tasks(formulation: Formulation) -> None:
    """Measured on the very tasks that are tested, of one task alone, they are the transductive ones."""
    algorithm, episodes = MAML(test_steps=3, rate=0.2), picture_tasks(tasks=1)
    transductive, problem = pictures("loop"), pictures(formulation, statistics="per-step")
    meta = algorithm.parameters(problem)
    buffers = algorithm.settled(problem, meta, {}, episodes)
    assert buffers["norm.1.mean"].shape == (4, 4)
    expected = algorithm.answers(transductive, meta, {}, episodes)
    for ours, theirs in zip(algorithm.answers(problem, meta, buffers, episodes), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    # Of other tasks they are others, and a query is answered the same whoever stands beside it.
    others = algorithm.settled(problem, meta, {}, picture_tasks(tasks=2, seed=7))
    whole = [*algorithm.answers(problem, meta, others, episodes)]
    alone = with_one_query(episodes)
    for many, one in zip(whole, algorithm.answers(problem, meta, others, alone), strict=True):
        torch.testing.assert_close(many[:, :1], one)
    *_, last = algorithm.answers(transductive, meta, {}, episodes)
    assert not torch.allclose(whole[-1], last)


def test_meta_sgd_with_constant_rates_is_maml() -> None:
    problem, episodes = pictures("columns"), picture_tasks()
    rates = found(MetaSGD(steps=2, low=0.2, high=0.2), problem, episodes)
    constant = found(MAML(steps=2, rate=0.2), problem, episodes)
    for name, each in constant.items():
        torch.testing.assert_close(rates[name], each, **CLOSE)
    assert all(rates[f"rate.{name}"].shape == each.shape for name, each in constant.items())


def test_anil_with_all_layers_is_maml() -> None:
    problem, episodes = pictures("columns"), picture_tasks()
    every = found(ANIL(steps=2, layers=("trunk", "head")), problem, episodes)
    torch.testing.assert_close(flat(every), flat(found(MAML(steps=2), problem, episodes)), **CLOSE)
    assert not torch.allclose(flat(every), flat(found(ANIL(steps=2), problem, episodes)))


def test_reptile_with_one_step_goes_along_the_joint_gradient() -> None:
    problem, episodes = (
        curves(),
        Sinusoids(shots=4, queries=4, dtype=torch.float64).draw(5, torch.Generator().manual_seed(0)),
    )
    gradient = found(Reptile(steps=1, batches=1, inner="sgd", rate=0.01), problem, episodes)
    meta = leaves(problem.network.initial())
    weights = {name: each.expand(5, *each.shape) for name, each in meta.items()}
    inputs = torch.cat([episodes.support, episodes.query], 1)
    outputs = problem.network.outputs(weights, problem.network.features(weights, inputs))
    loss = problem.loss(outputs, torch.cat([episodes.support_targets, episodes.query_targets], 1)).mean()
    joint = torch.autograd.grad(loss, list(meta.values()))
    torch.testing.assert_close(flat(gradient), 0.01 * torch.cat([each.flatten() for each in joint]), **CLOSE)


def test_reptile_of_fewer_samples_than_mini_batches_takes_one_at_a_time() -> None:
    episodes = Sinusoids(shots=1, queries=1, dtype=torch.float64).draw(3, torch.Generator().manual_seed(0))
    few, one = (found(Reptile(steps=4, batches=each, inner="sgd", rate=0.01), curves(), episodes) for each in (5, 2))
    torch.testing.assert_close(flat(few), flat(one), rtol=0, atol=0)
    assert bool(flat(few).any())


def test_reptile_with_adam_is_a_loop_with_adam() -> None:
    problem = curves()
    episodes = Sinusoids(shots=4, queries=4, dtype=torch.float64).draw(1, torch.Generator().manual_seed(0))
    algorithm = Reptile(steps=3, batches=2, rate=0.01)
    start = problem.network.initial()
    how, meta = Engine("columns", 1), leaves(start)
    outcome = engine.gradient(algorithm, problem, how, meta, algorithm.buffers(problem), episodes, 0)
    again = engine.gradient(algorithm, problem, how, meta, outcome.buffers, episodes, 1)
    live = leaves(start)
    adam = torch.optim.Adam(live.values(), lr=0.01, betas=(0.0, 0.999))
    for expected in (outcome, again):
        for name, each in start.items():
            live[name].data.copy_(each)
        for step in range(3):
            some = slice(step % 2, None, 2)
            inputs, targets = (
                torch.cat([a, b], 1)[:, some]
                for a, b in ((episodes.support, episodes.query), (episodes.support_targets, episodes.query_targets))
            )
            adam.zero_grad()
            weights = {name: each.unsqueeze(0) for name, each in live.items()}
            outputs = problem.network.outputs(weights, problem.network.features(weights, inputs))
            problem.loss(outputs, targets).sum().backward()
            adam.step()
        moved = {name: start[name] - each.detach() for name, each in live.items()}
        torch.testing.assert_close(flat(expected.gradient), flat(moved), rtol=1e-6, atol=1e-10)


def test_imaml_hypergradient_is_the_exact_inverse_on_a_quadratic() -> None:
    """A linear model with squared loss: H = 2 X'X / n is known, and so are the solution and its derivative by theta."""
    generator = torch.Generator().manual_seed(3)
    support, query = (torch.randn(2, 6, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    targets = [torch.randn(2, 6, 1, generator=generator, dtype=torch.float64) for _ in range(2)]
    episodes, strength = Episodes(support, targets[0], query, targets[1]), 1.5
    problem = _linear(3)
    algorithm = IMAML(steps=1200, rate=0.1, strength=strength, solver_steps=4)
    gradient = found(algorithm, problem, episodes)["head.weight"]
    start = problem.network.initial()["head.weight"].flatten()
    expected = torch.zeros(3, dtype=torch.float64)
    for task in range(2):
        hessian = 2 * support[task].T @ support[task] / 6
        pulled = hessian + strength * torch.eye(3, dtype=torch.float64)
        solved = torch.linalg.solve(pulled, 2 * support[task].T @ targets[0][task].flatten() / 6 + strength * start)
        outer = 2 * query[task].T @ (query[task] @ solved - targets[1][task].flatten()) / 6
        expected += torch.linalg.solve(torch.eye(3, dtype=torch.float64) + hessian / strength, outer) / 2
    torch.testing.assert_close(gradient.flatten(), expected, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(found(IMAML(solver_steps=0), problem, episodes)["head.weight"].flatten(), expected)


def truncated(matrix: Tensor, wanted: Tensor, steps: int) -> Tensor:
    """Conjugate gradients that end where the matrix is not positive; `wanted` itself where that is at once."""
    solution, left, way = torch.zeros_like(wanted), wanted, wanted
    for step in range(steps):
        curvature = way @ matrix @ way
        if curvature <= 0:
            return solution if step else wanted
        before = left @ left
        solution = solution + before / curvature * way
        left = left - before / curvature * (matrix @ way)
        way = left + (left @ left) / before * way
    return solution


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("curvature", "wanted"),
    [
        ([3.0, 1.0, 0.5, 0.2], [1.0, 2, 1, 1]),
        ([3.0, 1.0, 0.5, -2.5], [1.0, 2, 1, 0.5]),
        ([3.0, 1, 0.5, -9], [0.1, 0, 0, 4]),
    ],
    ids=["positive", "not positive later", "not positive at once"],
)
def test_imaml_stops_where_curvature_is_not_positive(curvature: list[float], wanted: list[float], steps: int) -> None:
    """`L_S = w'Hw / 2` and a query loss whose gradient at ones is `wanted`, for one weight a sample."""
    hessian, slope = (torch.tensor(each, dtype=torch.float64) for each in (curvature, wanted))
    eye = torch.eye(4, dtype=torch.float64).unsqueeze(0)
    episodes = Episodes(eye, hessian.view(1, 4, 1), eye, slope.view(1, 4, 1))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (targets * outputs.square()).sum((1, 2)) / 2

    problem = replace(_linear(4), loss=loss, score=loss)
    nn.init.ones_(problem.network.head.weight)
    gradient = found(IMAML(steps=1, rate=1e-13, strength=1.0, solver_steps=steps), problem, episodes)["head.weight"]
    expected = truncated(torch.eye(4, dtype=torch.float64) + torch.diag(hessian), slope, steps)
    torch.testing.assert_close(gradient.flatten(), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("shots", "queries", "most"), [(1, 1, 5), (9, 1, 5), (1, 15, 3), (5, 2, 10)])
def test_mini_batches_of_reptile_have_as_many_of_every_class(shots: int, queries: int, most: int) -> None:
    one = picture_tasks(tasks=2, shots=shots, queries=queries)
    turned = torch.tensor([2, 0, 1])  # a task that has its classes in another order
    targets = torch.cat([one.support_targets, one.query_targets], 1)
    targets = torch.stack([targets[0], turned[targets[1]]])
    inputs = torch.arange(targets.numel()).view(targets.shape)
    parts = mini_batches(inputs, targets, most)
    assert len(parts) == min(most, shots + queries)
    for samples, labels in parts:
        assert torch.equal(targets.flatten()[samples], labels)
        assert all(len(task.bincount(minlength=WAYS).unique()) == 1 for task in labels)
    seen = torch.cat([samples for samples, _ in parts], 1)
    assert torch.equal(seen.sort(1).values, inputs)


def test_dropout_is_for_training_alone() -> None:
    """Answers are those of the network without it, each time; training has it."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(81, 20), nn.ReLU(), nn.Dropout(0.5)]
    trunk, head = nn.Sequential(*layers).double(), nn.Linear(20, WAYS).double()
    sample, episodes = torch.rand(2, 1, 9, 9, dtype=torch.float64), picture_tasks()
    algorithm = MAML(test_steps=2)
    for formulation in ("vmap", "loop"):
        problem, without = (
            Problem(task_network(each, head, sample, formulation=formulation), cross_entropy, accuracy)
            for each in (trunk, nn.Sequential(*layers[:-1]))
        )
        meta, how = algorithm.parameters(problem), Engine(formulation, 2)
        expected = engine.answers(algorithm, without, how, meta, {}, episodes)
        for _ in range(2):
            for ours, theirs in zip(engine.answers(algorithm, problem, how, meta, {}, episodes), expected, strict=True):
                torch.testing.assert_close(ours, theirs)
        twice = [found(algorithm, problem, episodes)["head.weight"] for _ in range(2)]
        assert not torch.allclose(*twice)


def test_tests_under_other_statistics_than_were_measured_may_have_more_steps() -> None:
    problem, episodes = pictures("grouped", statistics="per-step"), picture_tasks(tasks=2)
    meta = MAML().parameters(problem)
    buffers = MAML(test_steps=1).settled(problem, meta, {}, episodes)
    transductive = pictures("grouped")
    ours = MAML(test_steps=4).answers(transductive, meta, buffers, episodes)
    expected = MAML(test_steps=4).answers(transductive, meta, {}, episodes)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, expected, strict=True))


def _linear(width: int) -> Problem:
    torch.manual_seed(0)
    head = nn.Linear(width, 1, bias=False).double()
    network = task_network(nn.Identity(), head, torch.zeros(2, width, dtype=torch.float64), formulation="columns")
    return Problem(network, squared_error, squared_error)


def test_multi_step_loss_fades_into_the_last_one() -> None:
    algorithm = MAML(steps=4, multi_step_iterations=10)
    assert algorithm.shares(0) == pytest.approx([0, 0.25, 0.25, 0.25, 0.25])
    assert algorithm.shares(5) == pytest.approx([0, 0.125, 0.125, 0.125, 0.625])
    assert algorithm.shares(10) == [0, 0, 0, 0, 1]


def test_first_iterations_may_be_of_first_order() -> None:
    problem, episodes = pictures("columns"), picture_tasks()
    algorithm = MAML(first_order_iterations=2)
    early, late = (flat(found(algorithm, problem, episodes, iteration=at)) for at in (1, 2))
    torch.testing.assert_close(early, flat(found(FOMAML(), problem, episodes)), **CLOSE)
    torch.testing.assert_close(late, flat(found(MAML(), problem, episodes)), **CLOSE)
