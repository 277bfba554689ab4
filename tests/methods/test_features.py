"""Classifiers over features, as they go through the training loop, against closed forms over all samples at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lifelong import tree
from lifelong.errors import InputError
from lifelong.learner import Learner
from lifelong.methods import METHODS, NCM, SLDA, RanPAC, ranpac
from lifelong.methods.ranpac import RIDGES, checksum
from lifelong.methods.streaming import StreamingClassifier
from lifelong.models import Network, with_head
from lifelong.streams import Scenario, Split, Stream, Task
from lifelong.training import loop
from lifelong.training.loop import Schedule, Step
from lifelong.training.optimizers import make_optimizer
from lifelong.training.state import method_bytes

INPUTS, FEATURES, CLASSES, SAMPLES = 6, 4, 3, 60
KINDS = [name for name, kind in METHODS.items() if kind.family == "streaming"]
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("ncm", {}),
    ("slda", {}),
    ("slda", {"shrinkage": 0.3}),
    ("ranpac", {"width": 12}),
    ("ranpac", {"width": 12, "ridge": 2.0}),
]


def made(name: str, **settings: Any) -> StreamingClassifier:
    found = METHODS[name](**settings)
    assert isinstance(found, StreamingClassifier)
    return found


def samples(offset: int = 0, seed: int = 0, classes: int = CLASSES) -> Split:
    """Clusters about centres of their own, so that there is something to learn, in float64."""
    drawn = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (SAMPLES,), generator=drawn)
    centres = torch.randn(classes, INPUTS, generator=drawn, dtype=torch.float64)
    noise = torch.randn(SAMPLES, INPUTS, generator=drawn, dtype=torch.float64)
    return Split(centres[targets] + noise, targets + offset)


def stream(scenario: Scenario, tasks: int = 3) -> Stream:
    parts = []
    for index in range(tasks):
        offset = index * CLASSES if scenario is Scenario.CLASS else 0
        split = samples(offset, seed=index)
        classes = tuple(range(offset, offset + CLASSES))
        parts.append(Task(index, f"task {index}", split, split.take(torch.arange(0)), split, classes))
    count = CLASSES * (tasks if scenario is Scenario.CLASS else 1)
    return Stream("made up", "random", scenario, tuple(parts), tuple(str(label) for label in range(count)))


def learner_for(scenario: Scenario, dropout: float = 0.0) -> Learner:
    torch.manual_seed(8)
    trunk = nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.Tanh(), nn.Dropout(dropout)).double()
    kind = {Scenario.DOMAIN: "single", Scenario.TASK: "multi", Scenario.CLASS: "growing"}[scenario]
    sample, planned = torch.zeros(2, INPUTS, dtype=torch.float64), (CLASSES,) * 3
    network: Network = with_head(trunk, kind, sample=sample, classes=planned, outputs=CLASSES)  # type: ignore[arg-type]
    block = getattr(network.head, "block", None)
    if block is not None:
        network.head.block = lambda index, count: block(index, count).double()
    return Learner(network.double(), make_optimizer("sgd", 0.1, {}), scenario, seed=3, planned_tasks=3)


def trained(method: StreamingClassifier, learner: Learner, through: Stream) -> int:
    """Take `method` through the stream; returns the number of steps that were made."""
    schedule = Schedule(batch_size=10, epochs=2)
    return sum(isinstance(event, Step) for event in loop.train(learner, method, through, schedule))


def answers(method: StreamingClassifier, learner: Learner, inputs: Tensor, task: int = 0) -> Tensor:
    learner.model.eval()
    with torch.inference_mode():
        return method.logits(learner, inputs, task)


def features_of(learner: Learner, inputs: Tensor) -> Tensor:
    learner.model.eval()
    with torch.no_grad():
        return learner.model.features(inputs)


def chosen_by_hand(h: Tensor, y: Tensor, held: Tensor) -> float:
    """The candidate with the least squared error on the held-out rows, solved anew for each."""

    def error(ridge: float) -> float:
        inverse = torch.linalg.inv(h[~held].T @ h[~held] + ridge * torch.eye(h.shape[1], dtype=h.dtype))
        return float(((h[held] @ inverse @ h[~held].T @ y[~held] - y[held]) ** 2).mean())

    return min(RIDGES, key=error)


def by_hand(method: StreamingClassifier, learner: Learner, seen: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """The logits `[asked, classes]`, worked out over all samples `seen` at once, one class and one sample at a time."""
    z, new = features_of(learner, seen), features_of(learner, asked)
    classes = range(int(labels.max()) + 1)
    means = torch.stack([z[labels == k].mean(0) for k in classes])
    if isinstance(method, NCM):
        return torch.stack([(new.square().sum(1) - (new - mean).square().sum(1)) / 2 for mean in means], 1)
    if isinstance(method, SLDA):
        away = [z[n] - means[labels[n]] for n in range(len(z))]
        sigma = sum(torch.outer(each, each) for each in away) / len(away)
        damped = (1 - method.shrinkage) * sigma + method.shrinkage * torch.eye(z.shape[1], dtype=z.dtype)
        precision = torch.linalg.inv(damped)
        return torch.stack([new @ precision @ mean - mean @ precision @ mean / 2 for mean in means], 1)
    assert isinstance(method, RanPAC)
    h, asked_h = method.embed(learner, z), method.embed(learner, new)
    y = torch.stack([(labels == k).double() for k in classes], 1)
    ridge = method.ridge or chosen_by_hand(h, y, checksum(seen) % 5 == 0)
    solved = torch.linalg.inv(h.T @ h + ridge * torch.eye(h.shape[1], dtype=h.dtype)) @ h.T @ y
    return asked_h @ solved


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
@pytest.mark.parametrize("learn_first", [True, False])
@pytest.mark.parametrize("scenario", list(Scenario))
def test_one_pass_through_the_stream_is_the_closed_form_over_all_samples(
    scenario: Scenario, learn_first: bool, name: str, settings: dict[str, Any]
) -> None:
    method, learner, through = made(name, learn_first=learn_first, **settings), learner_for(scenario), stream(scenario)
    trained(method, learner, through)
    told = scenario is Scenario.TASK
    seen = torch.cat([task.train.inputs for task in through.tasks])
    labels = torch.cat([task.train.targets + (CLASSES * task.index if told else 0) for task in through.tasks])
    for task in through.tasks:
        expected = by_hand(method, learner, seen, labels, task.test.inputs)
        if told:
            expected = expected[:, CLASSES * task.index : CLASSES * (task.index + 1)]
        torch.testing.assert_close(answers(method, learner, task.test.inputs, task.index), expected)


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
@pytest.mark.parametrize("batch", [1, 7, SAMPLES])
def test_neither_order_nor_batches_matter(batch: int, name: str, settings: dict[str, Any]) -> None:
    learner, split = learner_for(Scenario.CLASS), samples(classes=5)
    orders = [torch.arange(SAMPLES), torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(batch))]
    # The hardest order for a method that forgets: one class after the other.
    orders.append(split.targets.argsort(stable=True))
    found = []
    for order, size in zip(orders, (SAMPLES, batch, batch), strict=True):
        method = made(name, **settings)
        for part in order.split(size):
            method.observe(learner, split.inputs[part], split.targets[part])
        found.append(answers(method, learner, split.inputs))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-9)
        assert torch.equal(other.argmax(1), found[0].argmax(1))


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_where_a_stage_ends_makes_no_difference(name: str, settings: dict[str, Any]) -> None:
    split, found = samples(classes=4), []
    for cuts in ([SAMPLES], [5, 31, SAMPLES - 36]):
        learner, method = learner_for(Scenario.DOMAIN), made(name, learn_first=False, **settings)
        stages = torch.arange(SAMPLES).split(cuts)
        parts, none = [split.take(stage) for stage in stages], split.take(stages[0][:0])
        tasks = tuple(Task(k, str(k), part, none, part, (0, 1, 2, 3)) for k, part in enumerate(parts))
        trained(method, learner, Stream("cut", "random", Scenario.DOMAIN, tasks, ("0", "1", "2", "3")))
        found.append(answers(method, learner, split.inputs))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_steps_are_made_for_the_first_task_or_none(name: str) -> None:
    learner, through = learner_for(Scenario.CLASS), stream(Scenario.CLASS)
    before = tree.snapshot(tree.weights(learner.model.trunk))
    assert trained(made(name, learn_first=False), learner, through) == 0
    assert tree.norm(tree.sub(tree.weights(learner.model.trunk), before)) == 0

    learner, method, ends = learner_for(Scenario.CLASS), made(name), []
    steps = []
    for event in loop.train(learner, method, through, Schedule(batch_size=10, epochs=2)):
        if isinstance(event, loop.TaskStarted):
            steps.append(event.steps)
        if isinstance(event, loop.TaskDone):
            ends.append(tree.snapshot(tree.weights(learner.model.trunk)))
    assert steps == [12, 0, 0]
    assert tree.norm(tree.sub(ends[0], before)) > 0
    assert tree.norm(tree.sub(ends[2], ends[0])) == 0


@pytest.mark.parametrize("name", KINDS)
def test_what_was_not_seen_is_not_answered(name: str) -> None:
    learner, split, method = learner_for(Scenario.CLASS), samples(), made(name)
    keep = split.targets != 1
    method.observe(learner, split.inputs[keep], split.targets[keep] * 2)
    logits = answers(method, learner, split.inputs)
    assert logits.shape == (SAMPLES, 5)
    assert logits.isfinite().all(0).tolist() == [True, False, False, False, True]
    assert set(logits.argmax(1).tolist()) == {0, 4}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("scenario", list(Scenario))
def test_before_it_has_samples_the_network_answers(scenario: Scenario, name: str) -> None:
    learner, method, through = learner_for(scenario), made(name), stream(scenario)
    inputs = through.tasks[0].test.inputs
    for event in loop.train(learner, method, through, Schedule(batch_size=10)):
        first = learner.clock.task == 0
        if isinstance(event, Step) and first:  # early stopping measures here
            assert torch.equal(answers(method, learner, inputs), learner.model(inputs, 0))
        if isinstance(event, loop.TaskDone):
            learned = event.task.index + 1
            ahead = answers(method, learner, inputs, task=2)
            if scenario is Scenario.TASK and learned < 3:
                assert torch.equal(ahead, learner.model(inputs, 2))
            else:
                assert ahead.shape[1] == CLASSES * (learned if scenario is Scenario.CLASS else 1)
                assert not torch.equal(ahead, learner.model(inputs, 2))


@pytest.mark.parametrize("name", KINDS)
def test_features_are_taken_without_dropout(name: str) -> None:
    split, sums = samples(), []
    for dropout in (0.0, 0.9):
        learner, method = learner_for(Scenario.CLASS, dropout), made(name)
        learner.model.train()
        method.observe(learner, split.inputs, split.targets)
        assert all(module.training for module in learner.model.modules())
        sums.append(method.sums.total)
    assert torch.equal(*sums)


@pytest.mark.parametrize("name", KINDS)
def test_clusters_are_told_apart(name: str) -> None:
    learner, through, method = learner_for(Scenario.CLASS), stream(Scenario.CLASS), made(name)
    trained(method, learner, through)
    right = [answers(method, learner, task.test.inputs).argmax(1) == task.test.targets for task in through.tasks]
    assert float(torch.cat(right).double().mean()) > 2.5 / (3 * CLASSES)


def test_discriminant_analysis_shrunk_to_the_identity_is_the_nearest_mean() -> None:
    learner, split, methods = learner_for(Scenario.CLASS), samples(classes=5), [SLDA(shrinkage=1.0), NCM()]
    for method in methods:
        method.observe(learner, split.inputs, split.targets)
    slda, ncm = (answers(method, learner, split.inputs) for method in methods)
    torch.testing.assert_close(slda, ncm, rtol=1e-9, atol=1e-9)


def test_the_ridge_is_chosen_between_too_little_and_too_much() -> None:
    learner, split = learner_for(Scenario.CLASS), samples(classes=5)
    method = RanPAC(width=40)  # as many unknowns as samples to fit: some ridge is needed
    method.observe(learner, split.inputs, split.targets)
    found = answers(method, learner, split.inputs)
    fits = {}
    for ridge in RIDGES[:13]:  # below 1e-4 only rounding tells them apart
        given = RanPAC(width=40, ridge=ridge)
        given.observe(learner, split.inputs, split.targets)
        fits[ridge] = answers(given, learner, split.inputs)
        assert len(given.held.count) == 0
    [chosen] = [ridge for ridge, logits in fits.items() if torch.allclose(logits, found)]
    assert 1e-4 < chosen < 1e8


@pytest.mark.parametrize("width", [1, 2, 128, 300])
def test_two_gram_matrices_share_one(width: int) -> None:
    drawn = torch.Generator().manual_seed(1)
    fitted, held = (torch.randn(rows, width, generator=drawn, dtype=torch.float64) for rows in (23, 8))
    grams = torch.zeros(width + 1, width, dtype=torch.float64)
    for first, second in zip(fitted.split(6), held.split(2), strict=True):
        ranpac.add_grams(grams, first, second)
    ranpac.add_grams(grams, fitted[:0], held[:0])
    torch.testing.assert_close(ranpac.both_grams(grams), (fitted.T @ fitted, held.T @ held))


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("width", [1, 2, 3, 130])
def test_one_reduction_serves_all_ridges(width: int, classes: int) -> None:
    drawn = torch.Generator().manual_seed(2)
    features = torch.randn(2 * width, width, generator=drawn, dtype=torch.float64)
    gram, total = features.T @ features, torch.randn(classes, width, generator=drawn, dtype=torch.float64)
    before = gram.clone()
    found = list(ranpac._solutions(gram, total))
    assert [ridge for ridge, _ in found] == RIDGES
    for ridge, weight in found:
        inverse = torch.linalg.inv(gram + ridge * torch.eye(width, dtype=torch.float64))
        torch.testing.assert_close(weight, total @ inverse, rtol=1e-7, atol=1e-12)
    assert torch.equal(gram, before)


def test_ridges_that_rounding_swallows_are_no_candidates() -> None:
    feature = torch.full((40, 1), 1e6, dtype=torch.float64)
    gram = (feature @ feature.T) * 40  # of rank one: rounding leaves eigenvalues below 0
    ridges = [ridge for ridge, _ in ranpac._solutions(gram, torch.ones(1, 40, dtype=torch.float64))]
    assert RIDGES[0] in ridges
    assert RIDGES[-1] not in ridges


def test_choosing_the_ridge_takes_no_second_gram_matrix() -> None:
    learner, split = learner_for(Scenario.CLASS), samples(classes=5)
    sizes = []
    for ridge in (None, 1.0):
        method = RanPAC(width=40, ridge=ridge)
        method.observe(learner, split.inputs, split.targets)
        sizes.append(method_bytes(method))
    assert sizes[0] - sizes[1] == 8 * (40 + 40 * 5 + 5)  # a row, and the means of the samples that are held out


def test_about_a_fifth_is_held_out_whatever_the_inputs() -> None:
    drawn = torch.Generator().manual_seed(0)
    digits = torch.rand(4000, 3, 4, 4, generator=drawn)
    one_hot = torch.eye(50)[torch.randint(50, (4000,), generator=drawn)]
    pairs = torch.cat([one_hot, one_hot[torch.randperm(4000, generator=drawn)]], 1)
    words = torch.randint(1000, (4000, 5), generator=drawn)
    for inputs in (digits, digits.double(), digits.half(), pairs, words):
        held = checksum(inputs) % 5 == 0
        assert 0.12 < float(held.double().mean()) < 0.28
        order = torch.randperm(4000, generator=drawn)
        assert torch.equal(torch.cat([checksum(part) for part in inputs[order].split(33)]), checksum(inputs)[order])


def test_a_ridge_that_rounding_swallows_is_refused() -> None:
    learner, split, method = learner_for(Scenario.CLASS), samples(), RanPAC(width=100, ridge=1e-30)
    method.observe(learner, split.inputs, split.targets)
    with pytest.raises(InputError, match="ridge = 1e-30 is lost in the rounding"):
        answers(method, learner, split.inputs)
