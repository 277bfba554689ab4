"""Methods that keep samples, as they go through the real training loop, against slow references."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong.errors import InputError
from lifelong.experiments import build
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import run
from lifelong.learner import Batch, Learner
from lifelong.memory import Buffer, Columns
from lifelong.methods import ER, GSS, MIR, Chain, ICaRL, Method, gradients
from lifelong.methods.a_gem import project
from lifelong.methods.bic import fitted
from lifelong.methods.exemplars import herding
from lifelong.methods.gem import dual, inner_products
from lifelong.methods.gss import sample_gradients
from lifelong.methods.method import transient
from lifelong.methods.mir import interference
from lifelong.streams import Stream
from lifelong.training import loop
from lifelong.tree import Params


def values(method: str, scenario: str = "class", **more: Any) -> dict[str, Any]:
    return {
        "stream": "permuted" if scenario == "domain" else "split",
        "scenario": scenario,
        "tasks": 3,
        "method": method,
        "model": {"name": "mlp", "hidden": [12]},
        "train_samples": 60,
        "batch_size": 10,
        "steps": 8,
        "device": "cpu",
        "threads": 1,
        **more,
    }


@dataclass
class Watch(Method):
    """Calls a function with what the other methods of the chain left, at each step."""

    on_loss: Callable[[Learner, Batch, Tensor, Tensor], None] = transient(lambda: lambda *_: None)
    on_step: Callable[[Learner], None] = transient(lambda: lambda _: None)

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        self.on_loss(learner, batch, logits, loss)
        return loss

    def before_step(self, learner: Learner) -> None:
        self.on_step(learner)


def begun(
    settings: dict[str, Any], *, on_loss: Any = None, on_step: Any = None
) -> tuple[Any, Learner, Stream, Iterator[loop.Event]]:
    """A method at the start of the stream, watched, and the events of its training, which are to be run through."""
    made = recipe(settings)
    stream, method = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    watch = Watch()
    if on_loss is not None:
        watch.on_loss = on_loss
    if on_step is not None:
        watch.on_step = on_step
    # What stands alone is not chained with what watches it either.
    chain = method if method.alone else Chain({"it": method, "watch": watch})
    return method, learner, stream, loop.train(learner, chain, stream, build.schedule(made))


def trained(settings: dict[str, Any], *, on_loss: Any = None, on_step: Any = None) -> tuple[Method, Learner, Stream]:
    """A method that has learned the stream, watched."""
    method, learner, stream, events = begun(settings, on_loss=on_loss, on_step=on_step)
    for _ in events:
        pass
    return method, learner, stream


@pytest.mark.parametrize("seed", range(5))
def test_gem_solves_its_quadratic_program(seed: int) -> None:
    torch.manual_seed(seed)
    memories, gradient = torch.randn(4, 9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    gradient -= 0.5 * memories.sum(0)  # violates
    weights = dual(memories @ memories.T, memories @ gradient, margin=0.0)
    assert weights is not None
    found = gradient + memories.T @ weights
    assert float((memories @ found).min()) > -1e-8
    slow = scipy.optimize.minimize(
        lambda x: 0.5 * ((x - gradient.numpy()) ** 2).sum(),
        gradient.numpy(),
        jac=lambda x: x - gradient.numpy(),
        constraints=[{"type": "ineq", "fun": lambda x: memories.numpy() @ x, "jac": lambda x: memories.numpy()}],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(found.numpy(), slow.x, atol=1e-6)


def test_gem_does_nothing_where_nothing_is_violated_and_keeps_its_margin_else() -> None:
    gram = torch.eye(2, dtype=torch.float64)
    assert dual(gram, torch.tensor([0.1, 0.0], dtype=torch.float64), margin=0.5) is None
    weights = dual(gram, torch.tensor([3.0, -2.0], dtype=torch.float64), margin=0.5)
    torch.testing.assert_close(weights, torch.tensor([0.5, 2.0], dtype=torch.float64))


def test_gem_solves_with_memories_that_say_the_same() -> None:
    row = torch.tensor([1.0, 2.0], dtype=torch.float64)
    memories, gradient = torch.stack([row, row]), torch.tensor([-1.0, 0.0], dtype=torch.float64)
    weights = dual(memories @ memories.T, memories @ gradient, margin=0.0)
    assert weights is not None
    found = gradient + memories.T @ weights
    torch.testing.assert_close(found, gradient + 0.2 * row, rtol=1e-6, atol=1e-6)


def test_inner_products_are_over_all_of_the_parameters() -> None:
    torch.manual_seed(0)
    # The larger tensor goes through in pieces.
    trees = [{"a": torch.randn(700, 600), "b": torch.randn(3)} for _ in range(3)]
    rows = torch.stack([torch.cat([each["a"].flatten(), each["b"]]).double() for each in trees])
    torch.testing.assert_close(inner_products(["a", "b"], trees), rows @ rows.T, rtol=1e-4, atol=1e-1)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [6]}, {"name": "convnet", "channels": [3]}])
def test_gradients_over_several_batches_are_those_over_each(scenario: str, model: dict[str, Any]) -> None:
    made = recipe(values("naive", scenario, model=model))
    stream = build.stream(made)
    learner = build.learner(made, stream)
    for _ in loop.train(learner, build.method(made), stream, build.schedule(made)):
        pass
    batches = []
    for task in stream.tasks:
        inputs, targets = task.train.ready(learner.device).batch(torch.arange(5))
        batches.append(Batch(inputs, targets, task.index))
    found = gradients.over_each(learner, learner.params, batches)
    for place, batch in enumerate(batches):
        slow = gradients.over(learner, batch)
        torch.testing.assert_close({name: each[place] for name, each in found.items()}, slow, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_gem_steps_raise_the_loss_of_no_memory(scenario: str) -> None:
    least: list[float] = []

    def watched(learner: Learner) -> None:
        old = method.old or []
        if old:
            live = {name: each.grad for name, each in learner.params.items() if each.grad is not None}
            past = gradients.over_each(learner, live, old)
            inner = sum((past[name].flatten(1) @ live[name].flatten()) for name in live)
            scale = sum(past[name].flatten(1).square().sum(1) for name in live).sqrt()
            least.append(float((inner / scale).min()))

    settings = {"memories": 20, "margin": 0.0}
    method, _, _, events = begun(values("gem", scenario, method_settings=settings, lr=0.01), on_step=watched)
    for _ in events:
        pass
    assert len(least) == 16
    assert min(least) > -1e-4
    assert method.memory.groups.tolist() == [0] * 20 + [1] * 20 + [2] * 20


def parameters(gradients: dict[str, list[float] | None], reference: Params) -> Params:
    made: Params = {name: torch.zeros_like(each).requires_grad_() for name, each in reference.items()}
    for name, gradient in gradients.items():
        made[name].grad = None if gradient is None else torch.tensor(gradient).view_as(made[name])
    return made


def test_a_gem_takes_out_just_the_part_that_points_against_the_reference() -> None:
    reference = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([[2.0]])}
    against = parameters({"a": [-1.0, 5.0], "b": [-1.0]}, reference)
    project(against, reference)
    torch.testing.assert_close(against["a"].grad, torch.tensor([-1 + 3 / 5, 5.0]))
    torch.testing.assert_close(against["b"].grad, torch.tensor([[-1 + 6 / 5]]))
    along = parameters({"a": [1.0, 5.0], "b": None}, reference)
    project(along, reference)
    torch.testing.assert_close(along["a"].grad, torch.tensor([1.0, 5.0]))
    assert along["b"].grad is None


def test_a_gem_moves_the_heads_of_old_tasks_as_if_their_gradient_were_zero() -> None:
    reference = {"a": torch.tensor([1.0, 2.0]), "other head": torch.tensor([7.0])}
    current = parameters({"a": [-3.0, 1.0], "other head": None}, reference)
    project(current, reference)
    torch.testing.assert_close(current["a"].grad, torch.tensor([-3 + 1 / 54, 1 + 2 / 54]))
    torch.testing.assert_close(current["other head"].grad, torch.tensor([7 / 54]))


@pytest.mark.parametrize("boundaries", [True, False])
@pytest.mark.parametrize(("name", "settings"), [("a-gem", {}), ("er", {"weighting": "tasks"})])
def test_old_tasks_alone_are_drawn_from_where_it_is_told_where_they_end(
    name: str, settings: dict[str, Any], boundaries: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, set[int]]] = []
    where = {} if boundaries else {"stream": "blurry", "blur": 0.2}
    made = recipe(values(name, method_settings={"per_class": 5, **settings}, **where))
    stream, method = build.stream(made), build.method(made)
    draw = method.draw

    def watched(learner: Learner, batch: Batch) -> Columns:
        rows = draw(learner, batch)
        seen.append((learner.clock.task, set(rows["tasks"].tolist()) if rows else set()))
        return rows

    monkeypatch.setattr(method, "draw", watched)
    for _ in loop.train(build.learner(made, stream), method, stream, build.schedule(made)):
        pass
    assert len(seen) == 24
    if boundaries:
        assert all(tasks == set(range(task)) for task, tasks in seen)
    else:
        assert [tasks for _, tasks in seen[:2]] == [set(), {0}]


@pytest.mark.parametrize("method", ["er", "er-ace", "mir", "a-gem", "gss"])
def test_each_sample_is_offered_once_whatever_the_epochs(method: str) -> None:
    made, _, stream = trained(values(method, steps=None, epochs=3))
    assert made.memory.seen == sum(len(task.train) for task in stream.tasks)


def test_images_are_kept_as_the_data_set_stores_them() -> None:
    er, _, stream = trained(values("er", method_settings={"capacity": 40}, steps=None))
    rows = er.memory.rows(torch.arange(40))
    assert rows["inputs"].dtype == torch.uint8
    originals = {
        (bytes(inputs.numpy().tobytes()), int(target), task.index)
        for task in stream.tasks
        for inputs, target in zip(task.train.inputs, task.train.targets, strict=True)
    }
    kept = zip(rows["inputs"], rows["targets"].tolist(), rows["tasks"].tolist(), strict=True)
    assert all((inputs.numpy().tobytes(), target, task) in originals for inputs, target, task in kept)


@pytest.mark.parametrize("weighting", ["samples", "tasks"])
def test_replay_weighs_old_and_new_as_it_says(weighting: str) -> None:
    seen: list[tuple[int, int]] = []

    def check(learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> None:
        terms = F.cross_entropy(logits, batch.targets, reduction="none")
        new, task = batch.new, learner.clock.task + 1
        replayed = len(terms) - new
        seen.append((new, replayed))
        if replayed == 0:
            expected = terms.mean()
        elif weighting == "samples":
            expected = terms.sum() / (new + replayed)
        else:
            expected = terms[:new].mean() / task + (1 - 1 / task) * terms[new:].mean()
        torch.testing.assert_close(loss, expected)

    trained(values("er", "task", method_settings={"weighting": weighting, "replay_batch": 6}), on_loss=check)
    assert seen[0] == (10, 0)
    assert seen[-1] == (10, 6)


def test_er_ace_lets_new_samples_compete_within_their_batch_only() -> None:
    replayed = 0

    def check(learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> None:
        nonlocal replayed
        new = batch.new
        if len(logits) == new:
            return
        replayed += 1
        present = sorted(set(batch.targets[:new].tolist()))
        odds = logits[:new].exp()
        fresh = -(odds.gather(1, batch.targets[:new, None])[:, 0] / odds[:, present].sum(1)).log().mean()
        old = -logits[new:].log_softmax(1).gather(1, batch.targets[new:, None]).mean()
        torch.testing.assert_close(loss, fresh + old)

    trained(values("er-ace"), on_loss=check)
    assert replayed > 16


def test_er_ace_has_outputs_of_unseen_classes_compete() -> None:
    checked = 0

    def check(learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> None:
        nonlocal checked
        new, met = batch.new, [4, 7, 10][learner.clock.task]
        if len(logits) == new or learner.clock.step == 0:
            return
        checked += 1
        rivals = sorted({*batch.targets[:new].tolist(), *range(met, 10)})
        odds = logits[:new].exp()
        fresh = -(odds.gather(1, batch.targets[:new, None])[:, 0] / odds[:, rivals].sum(1)).log().mean()
        old = -logits[new:].log_softmax(1).gather(1, batch.targets[new:, None]).mean()
        torch.testing.assert_close(loss, fresh + old)

    trained(values("er-ace", head="single", mask_unseen=False, batch_size=30), on_loss=check)
    assert checked == 21


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize(("beta", "one_draw"), [(0.0, False), (0.7, False), (0.7, True)])
def test_der_is_the_distance_to_the_logits_of_when_samples_were_kept(
    scenario: str, beta: float, one_draw: bool
) -> None:
    given: dict[bytes, list[Tensor]] = {}
    checked = 0

    def is_given(row: Tensor, answer: Tensor) -> bool:
        return any(len(each) == len(answer) and torch.equal(each, answer) for each in given[row.numpy().tobytes()])

    def check(learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> None:
        nonlocal checked
        new = batch.new
        if len(logits) > new:
            count, drawn = len(method.dark["targets"]), method.dark
            for row, z, outputs in zip(batch.inputs[new:], drawn["logits"], drawn["outputs"].tolist(), strict=False):
                assert is_given(row, z[:outputs])
            distance = torch.cat(
                [
                    (row[:outputs] - z[:outputs]) ** 2
                    for row, z, outputs in zip(logits[new:], drawn["logits"], drawn["outputs"].tolist(), strict=False)
                ]
            ).mean()
            expected = F.cross_entropy(logits[:new], batch.targets[:new]) + 0.3 * distance
            if beta:
                first = new if one_draw else new + count
                assert len(logits) == first + count
                expected = expected + beta * F.cross_entropy(logits[first:], batch.targets[first:])
            torch.testing.assert_close(loss, expected)
            checked += 1
        for row, answer in zip(batch.inputs[:new], logits[:new].detach(), strict=True):
            given.setdefault(row.numpy().tobytes(), []).append(answer[answer.isfinite()].clone())

    settings = {"alpha": 0.3, "beta": beta, "one_draw": one_draw, "replay_batch": 6, "capacity": 500}
    method, _, stream, events = begun(values("der", scenario, method_settings=settings, steps=9), on_loss=check)
    for _ in events:
        pass
    assert checked == 26
    # Later training has left what is stored as it was.
    scaled = stream.tasks[0].train.scaled
    rows = method.memory.rows(torch.arange(len(method.memory)))
    assert len(method.memory) == method.memory.seen == 270
    for raw, answer, outputs in zip(rows["inputs"], rows["logits"], rows["outputs"].tolist(), strict=True):
        assert is_given(scaled(raw), answer[:outputs])


def test_mir_replays_what_the_next_step_would_harm_most() -> None:
    method, learner, stream = trained(values("mir", method_settings={"candidates": 25, "replay_batch": 4}))
    assert isinstance(method, MIR)
    inputs, targets = stream.tasks[2].train.ready(learner.device).batch(torch.arange(10))
    raw = stream.tasks[2].train.inputs[:10]
    # Nothing is kept, so the buffer is the same before and after.
    learner.clock.task, learner.clock.epoch = 2, 1
    batch = Batch(inputs, targets, 2, raw, stream.tasks[2].train.scaled)
    old = (method.memory.columns["tasks"][: len(method.memory)] < 2).nonzero().flatten()
    chosen = old[torch.from_numpy(method.random(learner, "replay").choice(len(old), 25, replace=False))]
    candidates = method.memory.rows(chosen)
    scaled = batch.scaled(candidates["inputs"])
    losses = []
    before = F.cross_entropy(learner.model(scaled, 2), candidates["targets"], reduction="none").detach()
    learner.optimizer = learner.make_optimizer(learner.params.values())
    rate = learner.optimizer.param_groups[0]["lr"]
    found = torch.autograd.grad(F.cross_entropy(learner.model(inputs, 2), targets), list(learner.params.values()))
    saved = [each.detach().clone() for each in learner.params.values()]
    with torch.no_grad():
        for each, gradient in zip(learner.params.values(), found, strict=True):
            each -= rate * gradient
        losses = F.cross_entropy(learner.model(scaled, 2), candidates["targets"], reduction="none") - before
        for each, old in zip(learner.params.values(), saved, strict=True):
            each.copy_(old)
    expected = {scaled[place].numpy().tobytes() for place in losses.topk(4).indices}
    extended = method.batch(learner, batch)
    assert {row.numpy().tobytes() for row in extended.inputs[10:]} == expected


def test_mir_chooses_at_each_step_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[tuple[int, int]] = []

    def counted(learner: Learner, batch: Batch, candidates: Batch) -> Tensor:
        counts.append((batch.new, len(candidates.targets)))
        return interference(learner, batch, candidates)

    monkeypatch.setattr("lifelong.methods.mir.interference", counted)
    trained(values("mir"))
    assert counts == [(10, 50)] * 16
    with pytest.raises(
        InputError, match="candidates = 10 leave no choice where 10 samples are replayed at a step: give"
    ):
        trained(values("mir", method_settings={"candidates": 10}))


def test_gss_scores_are_cosines_of_single_sample_gradients() -> None:
    gss, learner, stream = trained(values("gss", method_settings={"capacity": 30}))
    assert isinstance(gss, GSS)
    assert len(gss.memory) == 30
    inputs, targets = stream.tasks[1].train.ready(learner.device).batch(torch.arange(4))
    found = sample_gradients(learner, Batch(inputs, targets, 1))
    for place in range(4):
        single = gradients.over(learner, Batch(inputs[place : place + 1], targets[place : place + 1], 1))
        flat = torch.cat([single[name].flatten() for name in learner.params])
        torch.testing.assert_close(found[place], flat / flat.norm(), rtol=1e-4, atol=1e-6)
    scores = gss.memory.columns["scores"][:30]
    assert float(scores.min()) >= 0
    assert float(scores.max()) <= 2


def test_gss_challenges_by_how_alike_the_stored_ones_are() -> None:
    gss = GSS()
    gss.memory.capacity = 3
    gss.memory.write([0, 1, 2], {"scores": torch.tensor([1.9, 0.1, 0.7])}, [0, 0, 0])
    random = np.random.default_rng(0)
    places = [gss._challenged(torch.tensor([0.1]), random)[0] for _ in range(4000)]
    # Row 0 is challenged three times as often as row 2, the least never; they yield in 1.9/2.0 and 0.7/0.8 of cases.
    assert places.count(0) / 4000 == pytest.approx(0.75 * 0.95, abs=0.03)
    assert places.count(1) == 0
    assert places.count(2) / 4000 == pytest.approx(0.25 * 0.875, abs=0.03)
    several = [gss._challenged(torch.tensor([0.1, 0.1, 0.1, 0.1]), random) for _ in range(50)]
    assert all(each[3] == -1 for each in several)
    assert all(len({row for row in each if row >= 0}) == sum(row >= 0 for row in each) for each in several)


def test_gss_takes_in_samples_of_later_tasks_once_it_is_full() -> None:
    gss, _, _ = trained(values("gss", "domain", method_settings={"capacity": 30}, train_samples=None, steps=None))
    assert len(gss.memory) == 30
    assert set(gss.memory.columns["tasks"].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("unlike", [True, False])
def test_gss_lets_a_batch_challenge_that_is_unlike_all_it_knows(unlike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gss, learner, stream = trained(values("gss", method_settings={"capacity": 30}))
    assert isinstance(gss, GSS)
    inputs, targets = stream.tasks[1].train.ready(learner.device).batch(torch.arange(10))
    batch = Batch(inputs, targets, 1, stream.tasks[1].train.inputs[:10], stream.tasks[1].train.scaled)
    direction = torch.cat([each.flatten() for each in gradients.over(learner, batch).values()])
    known = F.normalize(direction, dim=0)[None] * (-1 if unlike else 1)
    monkeypatch.setattr(gss, "_known", lambda *_: known)
    before, seen = gss.memory.columns["scores"].clone(), gss.memory.seen
    learner.clock.epoch = 0
    gss._select(learner, batch)
    assert gss.memory.seen == seen + 10
    assert torch.equal(before, gss.memory.columns["scores"]) is not unlike


def test_gdumb_learns_from_its_buffer_alone_and_afresh() -> None:
    made = values("gdumb", method_settings={"capacity": 30}, steps=None, epochs=2)
    gdumb, learner, _ = trained(made)
    assert np.bincount(gdumb.memory.groups.numpy()).tolist() == [3] * 10
    # 30 samples, 10 a step, 2 epochs, 3 tasks.
    assert learner.clock.total_steps == 18
    # Another order of tasks' training would end elsewhere: the weights are those of one training run on the buffer.
    assert run(recipe(made))["memory"]["stored_samples"] == 30


def test_herding_is_greedy_to_the_letter() -> None:
    torch.manual_seed(3)
    features = F.normalize(torch.randn(12, 3, dtype=torch.float64), dim=1)
    mean, chosen = features.mean(0), []
    for number in range(1, 8):
        rest = [each for each in range(12) if each not in chosen]
        chosen.append(min(rest, key=lambda n: float((mean - features[[*chosen, n]].sum(0) / number).norm())))
    assert herding(features, 7).tolist() == chosen
    assert sorted(herding(features, 50).tolist()) == list(range(12))


def test_herding_comes_near_the_best_set_of_its_size() -> None:
    torch.manual_seed(4)
    features = F.normalize(torch.randn(9, 2, dtype=torch.float64), dim=1)

    def distance(chosen: Any) -> float:
        return float((features.mean(0) - features[list(chosen)].mean(0)).norm())

    every = sorted(distance(chosen) for chosen in itertools.combinations(range(9), 3))
    assert distance(herding(features, 3).tolist()) <= every[len(every) // 4]


def test_icarl_answers_with_the_nearest_mean_of_its_exemplars() -> None:
    icarl, learner, stream = trained(values("icarl", method_settings={"capacity": 34}))
    assert isinstance(icarl, ICaRL)
    assert np.bincount(icarl.memory.groups.numpy()).tolist() == [3] * 10
    rows = icarl.memory.rows(torch.arange(30))
    learner.model.eval()
    with torch.no_grad():
        kept = F.normalize(learner.model.features(rows["inputs"].float() / 255), dim=1)
        means = F.normalize(torch.stack([kept[rows["targets"] == label].mean(0) for label in range(10)]), dim=1)
        inputs, _ = stream.tasks[0].test.ready(learner.device).batch(torch.arange(20))
        features = F.normalize(learner.model.features(inputs), dim=1)
        slow = [min(range(10), key=lambda label: float((each - means[label]).norm())) for each in features]
        assert icarl.logits(learner, inputs, 0).argmax(1).tolist() == slow


def test_icarl_keeps_the_exemplars_that_herding_took_first() -> None:
    kept: list[list[bytes]] = []

    def snapshot(learner: Learner) -> None:
        if learner.clock.step == 0:
            memory = method.memory
            rows = memory.rows(torch.arange(len(memory)))
            if not rows:
                kept.append([])
                return
            kept.append([each.numpy().tobytes() for each in rows["inputs"][rows["targets"] == 0]])

    method, _, _, events = begun(values("icarl", method_settings={"capacity": 30}), on_step=snapshot)
    for _ in events:
        pass
    assert [len(each) for each in kept] == [0, 7, 4]
    assert kept[2] == kept[1][:4]


@pytest.mark.parametrize(("capacity", "rows"), [("1kB", 12), ("0.9kB", 11), (17, 17)])
def test_a_buffer_may_be_measured_in_bytes(capacity: Any, rows: int) -> None:
    # 64 bytes of image, 8 of target, 8 of task: 80 a sample.
    er, _, _ = trained(values("er", "domain", method_settings={"capacity": capacity}))
    assert len(er.memory) == rows


def test_per_class_keeps_so_many_of_each_class_of_each_task() -> None:
    er, _, _ = trained(values("er", "domain", method_settings={"per_class": 2}, steps=None))
    assert np.bincount(er.memory.groups.numpy(), minlength=30).tolist() == [2] * 30


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("er", {"capacity": "5XB"}, "capacity = '5XB' must be a number of samples"),
        ("er", {"capacity": 0}, "must be at least 1"),
        ("er", {"capacity": 9}, "fewer than the 10 classes: give it at least 10"),
        ("er", {"capacity": "300B"}, "holds 3 samples, fewer than the 10 classes"),
        ("icarl", {"capacity": 9}, "too small for 10 classes: give it at least 10"),
        ("bic", {"capacity": 19}, "too small for 10 classes: give it at least 20"),
    ],
)
def test_a_buffer_that_cannot_be_is_refused(method: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(recipe(values(method, method_settings=settings)))


@pytest.mark.parametrize("method", ["lwf-mc", "icarl", "er-ace"])
def test_methods_for_classes_refuse_other_scenarios(method: str) -> None:
    with pytest.raises(InputError, match="cannot do scenario task: it can do class"):
        build.method(recipe(values(method, "task")))


@pytest.mark.parametrize(("method", "temperature"), [("lwf-mc", 1.0), ("icarl", 1.0), ("icarl", 2.5)])
def test_binary_distillation_has_the_old_network_say_what_is_right_for_old_classes(
    method: str, temperature: float
) -> None:
    import copy

    old: dict[str, Any] = {}

    def check(learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> None:
        if learner.clock.step == 0:
            old["network"] = old.get("next")
        goal = torch.zeros_like(logits)
        goal[torch.arange(len(logits)), batch.targets] = 1
        if old["network"] is not None:
            answers = old["network"](batch.inputs, 0).detach()
            goal[:, : answers.shape[1]] = 1 / (1 + (-answers / temperature).exp())
        p = 1 / (1 + (-logits).exp())
        expected = -(goal * p.log() + (1 - goal) * (1 - p).log()).sum(1).mean()
        torch.testing.assert_close(loss, expected)

    settings = {"temperature": temperature} if method == "icarl" else {}
    _, learner, _, events = begun(values(method, method_settings=settings), on_loss=check)
    for event in events:
        if isinstance(event, loop.TaskDone):
            old["next"] = copy.deepcopy(learner.model)


def test_less_forgetful_learning_holds_features_and_old_heads() -> None:
    _, learner, _ = trained(values("lfl", "task", method_settings={"strength": 1e4}, optimizer="sgd", lr=1e-4))
    heads = learner.model.head.blocks
    assert [each.weight.requires_grad for each in heads] == [False, False, True]


def test_less_forgetful_learning_refuses_a_layer_that_old_and_new_classes_share() -> None:
    with pytest.raises(InputError, match=r"^method lfl freezes the layers of old classes: choose head growing$"):
        run(recipe(values("lfl", head="single")))
    assert run(recipe(values("lfl", "domain")))


def test_replay_composes_with_an_anchor_and_with_distillation() -> None:
    for name in ("er+ewc", "er+lwf", "der+si"):
        assert run(recipe(values(name)))["memory"]["stored_samples"] > 0


def test_replay_forgets_less_than_fine_tuning() -> None:
    settings = {"train_samples": None, "steps": 150, "lr": 3e-3}
    reached = {
        name: run(recipe(values(name, **settings)))["average_accuracy"]
        for name in ("naive", "er", "derpp", "er-ace", "mir", "icarl", "gdumb", "bic")
    }
    assert all(reached[name] > reached["naive"] + 0.25 for name in reached if name != "naive"), reached


def test_replay_is_offered_only_to_those_who_may_keep_samples() -> None:
    assert ER.keeps_samples
    assert not ER.boundaries


def test_the_bias_correction_is_where_the_cross_entropy_is_least() -> None:
    torch.manual_seed(5)
    logits, targets = torch.randn(80, 5, dtype=torch.float64), torch.randint(5, (80,))
    logits[torch.arange(80), targets] += 1.5
    logits[:, 3:] = 2 * logits[:, 3:] + 1.7  # the bias that is to be found
    found = fitted(logits, targets, 3)
    assert (found.first, found.end) == (3, 5)

    def entropy(numbers: Any) -> float:
        changed = torch.cat([logits[:, :3], numbers[0] * logits[:, 3:] + numbers[1]], 1)
        return float(F.cross_entropy(changed, targets))

    slow = scipy.optimize.minimize(entropy, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    np.testing.assert_allclose([found.scale, found.shift], slow.x, atol=1e-5)
    assert found.of(logits).argmax(1).eq(targets).sum() > logits.argmax(1).eq(targets).sum()


def test_bic_fits_its_correction_on_samples_that_it_never_learns_from() -> None:
    learned: set[bytes] = set()
    aside: dict[int, set[bytes]] = {}

    def watched(learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> None:
        learned.update(row.numpy().tobytes() for row in batch.inputs)

    def images(buffer: Buffer) -> set[bytes]:
        rows = buffer.rows(torch.arange(len(buffer)))["inputs"]
        return {row.numpy().tobytes() for row in stream.tasks[0].train.scaled(rows)}

    settings = {"capacity": 60, "held_out": 0.3}
    method, _, stream, events = begun(values("bic", method_settings=settings, steps=None, epochs=1), on_loss=watched)
    for event in events:
        if isinstance(event, loop.TaskDone):
            aside[len(aside)] = images(method.aside)
    # 60 samples are 6 of each of ten classes, of which two are set aside.
    assert torch.bincount(method.aside.groups).tolist() == [2] * 10
    assert torch.bincount(method.memory.groups).tolist() == [4] * 10
    assert not learned & set.union(*aside.values())
    assert images(method.memory) <= learned


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bic_distils_by_the_share_of_old_classes(temperature: float) -> None:
    checked = 0

    def check(learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> None:
        nonlocal checked
        old = [0, 4, 7][learner.clock.task]
        if old == 0:
            return
        checked += 1
        terms = [1 - old / logits.shape[1], old / logits.shape[1]]
        answers = method.teacher.network(learner)(batch.inputs, batch.task)[:, :old]
        p = (method.correction.of(answers) / temperature).softmax(1)
        q = (logits[:, :old] / temperature).softmax(1)
        divergence = (p * (p / q).log()).sum(1).mean()
        torch.testing.assert_close(loss, terms[0] * F.cross_entropy(logits, batch.targets) + terms[1] * divergence)

    settings = {"capacity": 60, "temperature": temperature}
    method, _, _, events = begun(values("bic", method_settings=settings), on_loss=check)
    for _ in events:
        pass
    assert checked == 16


def test_bic_answers_with_its_newest_correction_alone() -> None:
    bic, learner, stream = trained(values("bic", method_settings={"capacity": 60, "held_out": 0.4}, steps=40))
    assert (bic.correction.first, bic.correction.end) == (7, 10)
    assert bic.correction.scale != 1.0
    inputs, _ = stream.tasks[0].test.ready(learner.device).batch(torch.arange(5))
    learner.model.eval()
    plain, found = learner.model(inputs, 0), bic.logits(learner, inputs, 0)
    torch.testing.assert_close(found[:, :7], plain[:, :7], rtol=0, atol=0)
    torch.testing.assert_close(found[:, 7:], bic.correction.scale * plain[:, 7:] + bic.correction.shift)


def test_replayed_images_are_augmented_anew_at_each_draw_and_kept_as_they_are() -> None:
    seen: dict[int, set[bytes]] = {}

    def watched(learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> None:
        for row, target in zip(batch.inputs[batch.new :], batch.targets[batch.new :].tolist(), strict=True):
            seen.setdefault(target, set()).add(row.numpy().tobytes())

    er, _, stream = trained(values("er", method_settings={"capacity": 10}, crop=2, steps=30), on_loss=watched)
    kept = er.memory.rows(torch.arange(10))["inputs"]
    assert max(map(len, seen.values())) > 10
    originals = {row.numpy().tobytes() for task in stream.tasks for row in task.train.inputs}
    assert all(row.numpy().tobytes() in originals for row in kept)
