"""The loop, its optimisers and schedules, the early stop and the checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lifelong import randomness, tree
from lifelong.errors import DivergedError, InputError, StateError
from lifelong.experiments import build
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import run
from lifelong.methods import build as method
from lifelong.training import checkpoint
from lifelong.training.early_stopping import EarlyStopping
from lifelong.training.evaluation import accuracy
from lifelong.training.loop import EpochDone, Step, batches_per_epoch, train
from lifelong.training.optimizers import make_optimizer, rate_schedule


def prepared(**values: Any) -> tuple[Any, Any, Any]:
    made = recipe(
        {"tasks": 1, "train_samples": 64, "batch_size": 16, "model": {"name": "mlp", "hidden": [8]}, **values}
    )
    stream = build.stream(made)
    return build.learner(made, stream), stream, build.schedule(made)


def test_a_step_is_pytorchs_step() -> None:
    learner, stream, schedule = prepared(optimizer="sgd", lr=0.1)
    reference = nn.Sequential(learner.model.trunk, learner.model.head.linear)
    before = tree.snapshot(dict(reference.named_parameters()))
    step = next(event for event in train(learner, method("naive", {}), stream, schedule) if isinstance(event, Step))
    after = tree.snapshot(dict(reference.named_parameters()))
    tree.copy_(dict(reference.named_parameters()), before)
    split = stream.tasks[0].train
    order = torch.randperm(64, generator=randomness.generator(0, "order", 0, 0))
    inputs, targets = split.batch(order[:16])
    loss = nn.functional.cross_entropy(reference(inputs), targets)
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    assert float(step.loss) == pytest.approx(float(loss.detach()), rel=1e-6)
    for (name, old), gradient in zip(before.items(), gradients, strict=True):
        torch.testing.assert_close(after[name], old - 0.1 * gradient)


def test_clipping_is_torchs() -> None:
    moves = []
    for clip in (None, 1e-3):
        learner, stream, schedule = prepared(optimizer="sgd", lr=1.0, clip=clip, steps=1)
        before = tree.snapshot(tree.parameters(learner.model))
        for _ in train(learner, method("naive", {}), stream, schedule):
            pass
        moves.append(tree.sub(tree.snapshot(tree.parameters(learner.model)), before))
    assert float(tree.norm(moves[1])) == pytest.approx(1e-3, rel=1e-2)
    assert float(tree.cosine(*moves)) == pytest.approx(1.0, abs=1e-3)


def test_a_last_batch_of_one_joins_no_step() -> None:
    assert [batches_per_epoch(n, 16) for n in (1, 16, 17, 18, 33)] == [1, 1, 1, 2, 2]
    assert batches_per_epoch(3, 1) == 3


def test_optimizers_by_name() -> None:
    parameters = [nn.Parameter(torch.zeros(2))]
    assert make_optimizer("AdamW", 0.1, {"weight_decay": 0.5})(parameters).defaults["fused"]
    assert make_optimizer("rprop", 0.1, {})(parameters).defaults["lr"] == 0.1
    with pytest.raises(InputError, match="did you mean 'sgd'"):
        make_optimizer("sdg", 0.1, {})
    with pytest.raises(InputError, match="did you mean 'momentum'"):
        make_optimizer("sgd", 0.1, {"momentun": 0.9})
    with pytest.raises(InputError, match="Invalid momentum"):
        make_optimizer("sgd", 0.1, {"momentum": -1.0})(parameters)


def test_schedules() -> None:
    assert rate_schedule("constant", 0.0) is None
    cosine, linear = rate_schedule("cosine", 0.5), rate_schedule("linear", 0.0)
    assert cosine is not None
    assert linear is not None
    assert [cosine(done) for done in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [linear(done) for done in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]


def test_a_loss_that_is_no_number_names_task_and_step() -> None:
    with pytest.raises(DivergedError, match=r"at step \d+ of task 1 \(unpermuted\): try a smaller lr"):
        run(recipe({"optimizer": "sgd", "lr": 1e38, "epochs": 5, "batch_size": 8, "train_samples": 64}))


def test_early_stopping_ends_the_task_with_its_best_weights() -> None:
    learner, stream, schedule = prepared(epochs=50, validation=0.5, lr=0.05)
    stopping, seen = EarlyStopping(patience=2), []
    for event in train(learner, method("naive", {}), stream, schedule):
        if isinstance(event, EpochDone):
            stopping.look(learner, method("naive", {}), event.task)
            seen.append(accuracy(learner, method("naive", {}), event.task, event.task.validation))
    stopping.finish(learner)
    assert len(seen) < 50
    assert max(seen[-2:]) <= max(seen[:-2])
    task = stream.tasks[0]
    assert accuracy(learner, method("naive", {}), task, task.validation) == max(seen)


def test_early_stopping_puts_back_what_a_method_trains_beside_the_network() -> None:
    learner, stream, schedule = prepared(epochs=4, validation=0.5, method="dgr")
    dgr, stopping, first = method("dgr", {}), EarlyStopping(patience=5), {}
    for event in train(learner, dgr, stream, schedule):
        if isinstance(event, EpochDone):
            stopping.look(learner, dgr, event.task)
            stopping.best = 2.0  # no later epoch can be better than the first
            first = first or tree.snapshot(learner.trained)
    assert not torch.equal(learner.trained["generator.decoder.0.weight"], first["generator.decoder.0.weight"])
    stopping.finish(learner)
    torch.testing.assert_close(tree.snapshot(learner.trained), first, rtol=0, atol=0)


def test_any_module_learns_without_its_head() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    made = recipe({"stream": "split", "scenario": "task", "epochs": 3})
    result = run(made, model=net)
    assert result["average_accuracy"] > 0.6
    assert isinstance(net[4], nn.Identity)


def test_checkpoints_fall_back_to_the_last_good_one(tmp_path: Path) -> None:
    for position in (1, 2, 3):
        checkpoint.save_checkpoint(tmp_path, position, {"at": position}, {"w": torch.full((4,), float(position))})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["0000000002", "0000000003"]
    newest = tmp_path / "0000000003" / "tensors.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match="tensors.safetensors does not have the content"):
        state, tensors = checkpoint.load_checkpoint(tmp_path) or ({}, {})
    assert state == {"at": 2}
    assert tensors["w"].tolist() == [2.0] * 4
    (tmp_path / "0000000002" / "manifest.json").unlink()
    with pytest.raises(StateError, match="no good checkpoint is left"):
        checkpoint.load_checkpoint(tmp_path)
    assert checkpoint.load_checkpoint(tmp_path / "nothing") is None


def test_clipping_is_clip_grad_norm_to_the_letter() -> None:
    learner, stream, schedule = prepared(optimizer="sgd", lr=0.5, clip=0.3, steps=1)
    reference = nn.Sequential(learner.model.trunk, learner.model.head.linear)
    before = tree.snapshot(dict(reference.named_parameters()))
    for _ in train(learner, method("naive", {}), stream, schedule):
        pass
    after = tree.snapshot(dict(reference.named_parameters()))
    tree.copy_(dict(reference.named_parameters()), before)
    order = torch.randperm(64, generator=randomness.generator(0, "order", 0, 0))
    inputs, targets = stream.tasks[0].train.batch(order[:16])
    reference.zero_grad()
    nn.functional.cross_entropy(reference(inputs), targets).backward()
    assert float(nn.utils.clip_grad_norm_(reference.parameters(), 0.3)) > 0.3
    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(after[name], before[name] - 0.5 * parameter.grad)


def test_a_last_batch_of_one_is_dropped_where_normalisation_could_not_learn_from_it() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, 10))
    made = recipe({"tasks": 1, "train_samples": 33, "batch_size": 16, "epochs": 2})
    learner = build.learner(made, build.stream(made), net)
    events = train(learner, method("naive", {}), build.stream(made), build.schedule(made))
    assert [len(event.targets) for event in events if isinstance(event, Step)] == [16, 16, 16, 16]


def test_bf16_learns_with_weights_in_single_precision() -> None:
    made = {"tasks": 1, "epochs": 5, "seed": 0, "device": "cpu"}
    half, single = (run(recipe({**made, "precision": precision})) for precision in ("bf16", "float32"))
    assert half["average_accuracy"] > 0.8
    assert half["average_accuracy"] == pytest.approx(single["average_accuracy"], abs=0.05)
    learner, stream, schedule = prepared(precision="bf16", steps=1)
    logits = next(e for e in train(learner, method("naive", {}), stream, schedule) if isinstance(e, Step)).logits
    assert logits.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in learner.model.parameters()} == {torch.float32}


def test_the_rate_follows_its_schedule_and_starts_afresh_in_each_task() -> None:
    for keep in (False, True):
        learner, stream, schedule = prepared(
            tasks=2, optimizer="sgd", lr=0.4, schedule="linear", warmup=0.5, steps=4, keep_optimizer=keep
        )
        rates = []
        for event in train(learner, method("naive", {}), stream, schedule):
            if isinstance(event, Step):
                rates.append(learner.optimizer.param_groups[0]["lr"])
        assert rates == pytest.approx([0.0, 0.2, 0.4, 0.2] * 2)


@pytest.mark.parametrize("keep", [False, True])
def test_moments_go_on_from_task_to_task_only_where_asked(keep: bool) -> None:
    learner, stream, schedule = prepared(tasks=2, steps=3, keep_optimizer=keep)
    for _ in train(learner, method("naive", {}), stream, schedule):
        pass
    counts = {float(each["step"]) for each in learner.optimizer.state_dict()["state"].values()}
    assert counts == {6.0 if keep else 3.0}


@pytest.mark.parametrize(
    ("name", "stream_values"),
    [
        ("separate", {"stream": "split", "scenario": "task"}),
        ("progressive", {"stream": "split", "scenario": "task"}),
        ("gdumb", {"stream": "split", "scenario": "class"}),
        ("joint", {}),
        ("avg-independent", {}),
    ],
)
def test_weights_that_start_over_do_so_with_an_optimiser_that_knows_nothing_of_them(
    name: str, stream_values: dict[str, Any]
) -> None:
    found = []
    for keep in (False, True):
        learner, stream, schedule = prepared(tasks=2, steps=5, keep_optimizer=keep, **stream_values)
        for _ in train(learner, method(name, {}), stream, schedule):
            pass
        found.append(tree.snapshot(learner.params))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_momentum_of_a_parameter_whose_gradient_comes_late_is_pytorchs() -> None:
    found = []
    for settings in ({"momentum": 0.9}, {"momentum": 0.9, "fused": False}):
        early, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
        optimizer = make_optimizer("sgd", 0.1, settings)([early, late])
        for step in range(4):
            early.grad = torch.full((3,), float(step + 1))
            late.grad = None if step < 2 else torch.full((2,), float(step))
            optimizer.step()
        found.append((early.detach(), late.detach()))
    torch.testing.assert_close(found[0], found[1])


def test_divergence_names_the_task_where_it_happens() -> None:
    learner, stream, schedule = prepared(tasks=3, steps=4)
    events = train(learner, method("naive", {}), stream, schedule)
    for event in events:
        if isinstance(event, Step) and event.task.index == 1 and learner.clock.step == 1:
            break
    with torch.no_grad():
        learner.model.head.linear.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"the loss is nan at step 2 of task 2 \(permutation 1\)"):
        next(events)
