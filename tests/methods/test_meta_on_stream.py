"""Methods that meta-learn on the stream, or adapt before they answer, against loops in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lifelong import tree
from lifelong.errors import DivergedError, InputError
from lifelong.experiments import build
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import run
from lifelong.learner import Batch, Learner, grow, renew_optimizer, train_these
from lifelong.methods import OML, LaMAML, MbPA, Method
from lifelong.streams import Stream
from lifelong.tree import Params

ON_STREAM = ("la-maml", "oml", "mbpa")


def values(method: str, scenario: str = "class", **more: Any) -> dict[str, Any]:
    return {
        "stream": "permuted" if scenario == "domain" else "split",
        "data": "digits",
        "scenario": scenario,
        "tasks": 5,
        "method": method,
        "model": {"name": "mlp", "hidden": [6], "activation": "tanh"},
        "device": "cpu",
        "threads": 1,
        **more,
    }


def begun(method: str, scenario: str = "class", tasks: int = 2, **settings: Any) -> tuple[Any, Learner, Stream]:
    """A method and a learner in float64 in the task after `tasks - 1` others."""
    made = recipe(values(method, scenario, method_settings=settings))
    stream, kept = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    learner.model.double()
    for task in stream.tasks[:tasks]:
        learner.clock.task = task.index
        grow(learner, task)
        learner.model.double()
        kept.before_task(learner, task)
    train_these(learner, kept.trainable(learner))
    renew_optimizer(learner, keep=False)
    return kept, learner, stream


def some_batch(learner: Learner, stream: Stream, new: int = 7, old: int = 4) -> Batch:
    """New samples of the second task, and samples of the first behind them."""
    inputs, targets = stream.tasks[1].train.ready(learner.device).batch(torch.arange(new))
    before, labels = stream.tasks[0].train.ready(learner.device).batch(torch.arange(old))
    tasks = torch.cat([torch.full((new,), 1), torch.zeros(old, dtype=torch.int64)])
    told = tasks if learner.scenario.value == "task" else 1
    return Batch(torch.cat([inputs, before]).double(), torch.cat([targets, labels]), told, inputs)


def meta_loss(method: Method, learner: Learner, batch: Batch) -> Tensor:
    return F.cross_entropy(method.forward(learner, batch), batch.targets)


def looked_ahead(
    learner: Learner, batch: Batch, params: Params, rates: Params, steps: int, names: list[str]
) -> tuple[Params, Params]:
    """The weights after plain steps on parts of the new samples, and the sum of the gradients on the way."""
    sums = tree.zeros_like(params)
    for rows in torch.arange(batch.new).tensor_split(steps):
        live = {name: each.detach().requires_grad_() for name, each in params.items()}
        task = batch.task[rows] if isinstance(batch.task, Tensor) else batch.task
        loss = F.cross_entropy(functional_call(learner.model, live, (batch.inputs[rows], task)), batch.targets[rows])
        slopes = torch.autograd.grad(loss, [live[name] for name in names], allow_unused=True, materialize_grads=True)
        for name, slope in zip(names, slopes, strict=True):
            sums[name] += slope
            params = params | {name: live[name].detach() - rates[name] * slope}
    return params, sums


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_la_maml_steps_as_its_algorithm_says(scenario: str) -> None:
    method, learner, stream = begun("la-maml", scenario, rate=0.3, rate_lr=500.0, steps=3, norm=None)
    assert isinstance(method, LaMAML)
    batch, names = some_batch(learner, stream), list(learner.params)
    start, rates = tree.snapshot(learner.params), tree.snapshot(method.rates)
    ahead, sums = looked_ahead(learner, batch, start, rates, 3, names)
    live = {name: each.requires_grad_() for name, each in ahead.items()}
    loss = F.cross_entropy(functional_call(learner.model, live, (batch.inputs, batch.task)), batch.targets)
    slopes = dict(zip(names, torch.autograd.grad(loss, list(live.values())), strict=True))

    meta_loss(method, learner, batch).backward()
    method.before_step(learner)

    new_rates = {name: rates[name] + 500.0 * slopes[name] * sums[name] for name in names}
    new = {name: start[name] - new_rates[name].clamp_min(0) * slopes[name] for name in names}
    torch.testing.assert_close(method.rates, new_rates)
    torch.testing.assert_close(tree.snapshot(learner.params), new)
    waiting = torch.cat([(each < 0).flatten() for each in new_rates.values()])
    assert 0 < int(waiting.sum()) < len(waiting)  # some weights were held, and others not
    assert all(each.grad is None for each in learner.params.values())  # nothing is left to the optimiser


def test_la_maml_without_learned_rates_leaves_them() -> None:
    method, learner, stream = begun("la-maml", rate_lr=0.0)
    before = tree.snapshot(method.rates)
    meta_loss(method, learner, some_batch(learner, stream)).backward()
    method.before_step(learner)
    torch.testing.assert_close(method.rates, before, rtol=0, atol=0)


def test_la_maml_bounds_the_norms_of_both_gradients() -> None:
    method, learner, stream = begun("la-maml", rate=0.1, norm=1e-3, rate_lr=1.0)
    start, rates = tree.snapshot(learner.params), tree.snapshot(method.rates)
    meta_loss(method, learner, some_batch(learner, stream)).backward()
    method.before_step(learner)
    assert float(tree.norm(tree.sub(method.rates, rates))) == pytest.approx(1e-3, rel=1e-3)
    assert float(tree.norm(tree.sub(tree.snapshot(learner.params), start))) == pytest.approx(1e-4, rel=0.02)


def slope_by_differences(method: Method, learner: Learner, batch: Batch, tensor: Tensor, place: int) -> float:
    flat, reach, found = tensor.detach().view(-1), 1e-5, []
    for sign in (1, -1):
        flat[place] += sign * reach
        found.append(meta_loss(method, learner, batch).item())
        flat[place] -= sign * reach
    return (found[0] - found[1]) / (2 * reach)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("name", ["la-maml", "oml"])
def test_derivatives_through_the_steps_are_those_of_finite_differences(name: str, scenario: str) -> None:
    order = {"second_order": True} if name == "la-maml" else {}
    method, learner, stream = begun(name, scenario, rate=0.5, steps=3, **order)
    batch = some_batch(learner, stream)
    meta_loss(method, learner, batch).backward()
    found = {key: each.grad.clone() for key, each in learner.params.items() if each.grad is not None}
    of_rates = tree.snapshot(tree.gradients(method.live)) if isinstance(method, LaMAML) else {}
    assert found.keys() == learner.params.keys()
    for key, slope in found.items():
        place = int(slope.abs().argmax())
        assert slope.view(-1)[place] == pytest.approx(
            slope_by_differences(method, learner, batch, learner.params[key], place), rel=1e-5
        )
    if isinstance(method, LaMAML):
        assert of_rates.keys() == method.rates.keys()
        for key, rate in method.rates.items():
            place = int(of_rates[key].abs().argmax())
            expected = slope_by_differences(method, learner, batch, rate, place)
            assert of_rates[key].view(-1)[place] == pytest.approx(expected, rel=1e-5)


def test_oml_moves_the_head_alone_on_its_way() -> None:
    method, learner, stream = begun("oml", rate=0.5, steps=3)
    assert isinstance(method, OML)
    batch, start = some_batch(learner, stream), tree.snapshot(learner.params)
    head = [name for name in start if name.startswith("head.")]
    ahead, _ = looked_ahead(learner, batch, start, dict.fromkeys(start, 0.5), 3, head)  # type: ignore[arg-type]
    expected = functional_call(learner.model, ahead, (batch.inputs, batch.task))
    torch.testing.assert_close(method.forward(learner, batch), expected)
    torch.testing.assert_close(tree.snapshot(learner.params), start, rtol=0, atol=0)


def test_oml_that_stands_still_is_replay() -> None:
    still = run(recipe(values("oml", tasks=2, steps=5, method_settings={"rate": 0.0})))
    replay = run(recipe(values("er", tasks=2, steps=5)))
    assert still["accuracy"] == replay["accuracy"]


def adapting(scenario: str, **settings: Any) -> tuple[MbPA, Learner, Stream]:
    """MbPA in float32, as it answers, that knows the first samples of two tasks."""
    method, learner, stream = begun("mbpa", scenario, **settings)
    learner.model.float().eval()
    for task in stream.tasks[:2]:
        ready = task.train.ready(learner.device)
        rows = {"inputs": ready.inputs[:20], "targets": ready.targets[:20]}
        method.memory.append({**rows, "tasks": torch.full((20,), task.index)}, task.index)
    method.after_task(learner, stream.tasks[1])
    return method, learner, stream


def one_by_one(method: MbPA, learner: Learner, inputs: Tensor, task: int) -> Tensor:
    """Answers for one query after another, by autograd."""
    model, answers = learner.model, []
    start = {name: each.detach().clone() for name, each in model.head.named_parameters()}
    for query in model.features(inputs).detach():
        rows = range(40) if learner.scenario.value != "task" else range(20 * task, 20 * task + 20)
        near = sorted(rows, key=lambda row: float((method.known["features"][row] - query).norm()))[: method.neighbours]
        features, targets = method.known["features"][near], method.known["targets"][near]
        weights = 1 / (1e-3 + (features - query).square().sum(1))
        weights /= weights.sum()
        params = start
        for _ in range(method.local_steps):
            params = {name: each.detach().requires_grad_() for name, each in params.items()}
            wrong = F.cross_entropy(functional_call(model.head, params, (features, task)), targets, reduction="none")
            held = sum((params[name] - start[name]).square().sum() for name in params)
            ((weights * wrong).sum() + method.pull / 2 * held).backward()
            params = {name: each - method.local_rate * each.grad for name, each in params.items()}  # type: ignore[operator]
        answers.append(functional_call(model.head, params, (query.unsqueeze(0), task))[0].detach())
    return torch.stack(answers)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_mbpa_adapts_to_each_query_alone(scenario: str) -> None:
    method, learner, stream = adapting(scenario, neighbours=6, local_steps=4, local_rate=0.5, pull=0.3)
    inputs, _ = stream.tasks[0].test.ready(learner.device).batch(torch.arange(9))
    expected = one_by_one(method, learner, inputs, 0)
    with torch.inference_mode():
        plain, found = learner.model(inputs, 0), method.logits(learner, inputs, 0)
    torch.testing.assert_close(found.clone(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, found, atol=0.1)
    torch.testing.assert_close(learner.model(inputs, 0), plain.clone(), rtol=0, atol=0)  # nothing of it stays


def test_what_diverges_names_the_settings_that_did_it() -> None:
    quick = {"train_samples": 100, "tasks": 2, "epochs": 1}
    with pytest.raises(DivergedError, match=r"local steps: try a smaller method.local_rate = 0.1, or method.pull = 1e"):
        run(recipe(values("mbpa", **quick, method_settings={"pull": 1e20, "local_steps": 5})))
    with pytest.raises(DivergedError, match=r"the loss is .*: try a smaller method.rate or method.rate_lr"):
        run(recipe(values("la-maml", **quick, method_settings={"rate": 1e30, "norm": None})))


def test_mbpa_that_takes_no_step_answers_as_the_network_does() -> None:
    method, learner, stream = adapting("class", local_steps=0)
    inputs, _ = stream.tasks[0].test.ready(learner.device).batch(torch.arange(9))
    torch.testing.assert_close(method.logits(learner, inputs, 0), learner.model(inputs, 0), rtol=0, atol=0)


def test_mbpa_answers_for_a_task_that_it_knows_nothing_of() -> None:
    method, learner, stream = adapting("task")
    inputs, _ = stream.tasks[2].test.ready(learner.device).batch(torch.arange(9))
    torch.testing.assert_close(method.logits(learner, inputs, 2), learner.model(inputs, 2), rtol=0, atol=0)


def test_two_that_replay_are_not_chained_and_la_maml_stands_alone() -> None:
    with pytest.raises(InputError, match="la-maml cannot be chained"):
        build.method(recipe(values("la-maml+ewc")))
    with pytest.raises(InputError, match="both replay samples"):
        build.method(recipe(values("oml+mbpa")))


def test_they_remember_what_fine_tuning_forgets() -> None:
    common: dict[str, Any] = {
        "steps": 40,
        "batch_size": 20,
        "model": {"name": "mlp", "hidden": [64]},
        "lr": 3e-3,
        "test_samples": 300,
    }
    reached = {name: run(recipe(values(name, **common)))["average_accuracy"] for name in ("naive", *ON_STREAM)}
    assert min(reached[name] for name in ON_STREAM) > reached["naive"] + 0.3
