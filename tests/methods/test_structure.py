"""Structural methods: old answers stay to the bit, and parameters are shared out as the papers say."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong import tree
from lifelong.errors import InputError
from lifelong.experiments import build
from lifelong.experiments.recipe import recipe
from lifelong.experiments.run import Every, Finished, events
from lifelong.learner import Batch, Learner
from lifelong.methods import (
    HAT,
    METHODS,
    Growing,
    Method,
    PackNet,
    Piggyback,
    Progressive,
    Separate,
    XdG,
    gating,
    gradients,
)
from lifelong.methods.piggyback import masked, pack, unpack
from lifelong.methods.sequence import stages
from lifelong.methods.structure import Hold
from lifelong.streams import Stream
from lifelong.training import loop, state
from lifelong.training.early_stopping import EarlyStopping
from lifelong.training.evaluation import accuracy, evaluating
from lifelong.training.loop import Step, StepsDone, TaskDone, TaskStarted

STRUCTURAL = [name for name, kind in METHODS.items() if kind.family == "structural"]
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [24, 16], "dropout": 0.2},
    "batch norm": {"name": "convnet", "channels": [6, 8]},
    "no norm": {"name": "convnet", "channels": [6, 8], "norm": "none"},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.01, "optimizer": {"name": "adam", "weight_decay": 0.1}},
    "momentum": {"lr": 0.05, "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01}},
    "adam kept": {"lr": 0.01, "optimizer": {"name": "adamw", "weight_decay": 0.1}, "keep_optimizer": True},
}

FIRST = {"piggyback": {"learn_first": False}}
# So that layers grow and units split within the few steps of a test.
GROWING = {"name": "growing", "patience": 3, "added": 3, "threshold": 0.01, "drift": 0.05, "most": 3.0}


def values(method: Any, **more: Any) -> dict[str, Any]:
    return {
        "stream": "split",
        "data": "digits",
        "scenario": "task",
        "tasks": 4,
        "method": method,
        "model": MODELS["mlp"],
        "train_samples": 80,
        "batch_size": 16,
        "steps": 9,
        "device": "cpu",
        "threads": 1,
        "optimizer": {"name": "adam"},
        "lr": 0.01,
        **more,
    }


def begun(**chosen: Any) -> tuple[Learner, Method, Stream, Any]:
    made = recipe(values(**chosen))
    stream, method = build.stream(made), build.method(made)
    learner = build.learner(made, stream)
    return learner, method, stream, loop.train(learner, method, stream, build.schedule(made))


def trained(**chosen: Any) -> tuple[Learner, Method, Stream]:
    learner, method, stream, running = begun(**chosen)
    for _ in running:
        pass
    return learner, method, stream


def answers(learner: Learner, method: Method, stream: Stream, index: int) -> Tensor:
    inputs, _ = next(stream.tasks[index].test.ready(learner.device).batches(100))
    with evaluating(learner.model), torch.inference_mode():
        return method.logits(learner, inputs, index)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", sorted({*STRUCTURAL} - {"growing", "xdg"}))
def test_old_answers_stay_to_the_bit(method: str, model: str, optimizer: str) -> None:
    learner, running, stream, train = begun(method=method, model=MODELS[model], **OPTIMIZERS[optimizer])
    kept: list[Tensor] = []
    for event in train:
        if type(event) is TaskDone:
            kept.append(answers(learner, running, stream, event.task.index))
    for index, before in enumerate(kept):
        assert torch.equal(answers(learner, running, stream, index), before)
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [64, 32]}, {"name": "convnet", "channels": [16, 16]}])
@pytest.mark.parametrize("method", sorted({*STRUCTURAL} - {"xdg"}))
def test_all_tasks_are_known_at_the_end(method: str, model: dict[str, Any]) -> None:
    learner, running, stream = trained(method=method, model=model, steps=150, train_samples=200)
    reached = [accuracy(learner, running, task, task.test) for task in stream.tasks]
    assert sum(reached) / len(reached) > 0.85


@pytest.mark.parametrize("method", STRUCTURAL)
def test_tasks_to_come_are_answered(method: str) -> None:
    learner, running, stream, train = begun(method=method)
    for _ in range(2):
        assert answers(learner, running, stream, 3).shape[1] == len(stream.tasks[3].classes)
        next(event for event in train if type(event) is TaskDone)


@pytest.mark.parametrize(
    "more",
    [
        {"model": MODELS["batch norm"]},
        {"keep_optimizer": True},
        {"optimizer": {"name": "sgd", "momentum": 0.9}, "keep_optimizer": True, "clip": 0.5},
        {"precision": "bf16"},
    ],
    ids=["batch norm", "adam kept", "momentum kept, clip", "bf16"],
)
@pytest.mark.parametrize("after", [8, 14, 25])
@pytest.mark.parametrize("method", STRUCTURAL)
def test_resumed_to_the_bit(
    method: str, after: int, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # no power fails here
    made = recipe(values(GROWING if method == "growing" else method, tasks=3, **more))
    for _ in events(made, tmp_path / "whole"):
        pass
    steps = 0
    running = events(made, tmp_path / "stopped", checkpoint_every=Every(steps=2, seconds=None))
    for event in running:
        steps += type(event) is Step
        if steps == after:
            break
    running.close()
    for _ in events(made, tmp_path / "stopped", resume=True):
        pass
    whole, resumed = (tmp_path / "whole", tmp_path / "stopped")
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    first, second = (json.loads((out / "result.json").read_text()) for out in (whole, resumed))
    assert first["accuracy"] == second["accuracy"]
    assert first["memory"]["method_bytes"] == second["memory"]["method_bytes"]


@pytest.mark.parametrize("method", STRUCTURAL)
def test_other_scenarios_are_refused(method: str) -> None:
    with pytest.raises(InputError, match=f"method {method} cannot do scenario class"):
        build.method(recipe(values(method, scenario="class")))


@pytest.mark.parametrize("method", sorted({*STRUCTURAL} - {"separate", "xdg"}))
def test_a_shared_head_is_refused(method: str) -> None:
    with pytest.raises(InputError, match=f"method {method} .*choose head multi"):
        trained(method=method, head="single", stream="permuted")


def test_held_entries_stay_and_others_move() -> None:
    torch.manual_seed(0)
    params = {"a": torch.randn(5, 7, requires_grad=True), "b": torch.randn(3, requires_grad=True)}
    held = {"a": torch.rand(5, 7) < 0.5, "b": torch.zeros(3, dtype=torch.bool)}
    before, hold = tree.snapshot(params), Hold.of(params, held)
    optimizer = torch.optim.Adam(params.values(), lr=0.1, weight_decay=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        sum((each**3).sum() for each in params.values()).backward()
        hold.mask(params)
        for name, each in params.items():
            assert torch.equal(each.grad == 0, held[name])
        optimizer.step()
        hold.restore(params)
    for name, each in params.items():
        assert torch.equal(each.detach() == before[name], held[name])


def shares(total: int, prune: float, tasks: int) -> list[int]:
    """Free weights of a layer before each task."""
    free = [total]
    for _ in range(tasks - 1):
        free.append(int(prune * free[-1]))
    return free


@pytest.mark.parametrize("prune", [0.3, 0.5, 0.75])
def test_packnet_shares_each_layer_out(prune: float) -> None:
    learner, method, _ = trained(method={"name": "packnet", "prune": prune})
    assert isinstance(method, PackNet)
    assert set(method.owner) == {"trunk.1.weight", "trunk.4.weight"}
    live = dict(learner.model.named_parameters())
    for name, owner in method.owner.items():
        assert owner.dtype == torch.uint8
        free = shares(owner.numel(), prune, 4)
        owned = [int((owner == task).sum()) for task in range(1, 5)]
        # The last task keeps all that it took.
        assert owned == [free[0] - free[1], free[1] - free[2], free[2] - free[3], free[3]]
        assert not (owner == 0).any()
        assert live[name].shape == owner.shape


def test_packnet_frees_the_smallest_weights_and_trains_the_others_on() -> None:
    learner, method, _, running = begun(method={"name": "packnet", "prune": 0.5, "retrain": 1 / 3})
    assert isinstance(method, PackNet)
    name = "trunk.1.weight"
    weight = dict(learner.model.named_parameters())[name]
    path = []
    for event in running:
        if type(event) is TaskDone:
            break
        if type(event) is Step:
            path.append((weight.detach().clone(), method.owner[name].clone()))
    assert [int((owner == 0).sum()) for _, owner in path] == [0] * 5 + [weight.numel() // 2] * 4
    freed = path[-1][1] == 0
    # The step that prunes moves the weights first, by at most about the learning rate.
    last = path[4][0].abs()
    assert last[freed].max() <= last[~freed].min() + 0.025
    for moved, _ in path[5:]:
        assert not moved[freed].any()
    assert not torch.equal(path[5][0][~freed], path[-1][0][~freed])


def test_packnet_starts_later_tasks_from_zero() -> None:
    learner, method, _, running = begun(method="packnet")
    next(event for event in running if type(event) is TaskDone)
    assert isinstance(method, PackNet)
    live = dict(learner.model.named_parameters())
    for name, owner in method.owner.items():
        assert torch.equal(live[name] == 0, owner == 0)


def test_packnet_frees_nothing_after_the_last_task_only_where_it_is_known() -> None:
    learner, method, stream, running = begun(method={"name": "packnet", "prune": 0.5}, tasks=2)
    learner.planned_tasks = None
    for _ in running:
        pass
    assert isinstance(method, PackNet)
    for owner in method.owner.values():
        assert int((owner == 0).sum()) == shares(owner.numel(), 0.5, 3)[-1]
    assert len(stream) == 2


def test_packnet_refuses_a_ratio_that_leaves_nothing() -> None:
    message = r"prune = 0 leaves 0 of 1920 weights free for task 2: prune more"
    with pytest.raises(InputError, match=message):
        trained(method={"name": "packnet", "prune": 0.0})
    # 2 x 64 + 2 x 2 weights dwindle to 1 and 0, 0 and 0.
    steps = []
    with pytest.raises(InputError, match="leaves 0 of 132 weights free for task 4"):
        steps += begun(method={"name": "packnet", "prune": 0.15}, model={"name": "mlp", "hidden": [2, 2]})[3]
    assert steps == []


def test_packnet_refuses_a_full_network_where_the_stream_has_no_known_end() -> None:
    learner, _, _, running = begun(method={"name": "packnet", "prune": 0.15}, model={"name": "mlp", "hidden": [2, 2]})
    learner.planned_tasks = None
    done = []
    with pytest.raises(InputError, match="leaves 0 of 132 weights free for task 4"):
        done += [event.task.index for event in running if type(event) is TaskDone]
    assert learner.clock.task == 3


def test_packnet_counts_to_255() -> None:
    learner, method, stream, _ = begun(method="packnet", tasks=2)
    learner.planned_tasks = 256
    method.prune = 0.999
    with pytest.raises(InputError, match="at most 255 tasks apart: task 256 is too many"):
        method.setup(learner)
    assert len(stream) == 2


def test_packnet_leaves_the_rest_as_the_first_task_left_it() -> None:
    learner, _, _, running = begun(method="packnet", model=MODELS["batch norm"], **OPTIMIZERS["momentum"])
    next(event for event in running if type(event) is TaskDone)
    rest = {name: each for name, each in tree.weights(learner.model.trunk).items() if each.dim() < 2}
    before = tree.snapshot(rest)
    assert any("running_var" in name for name in rest)
    for _ in running:
        pass
    torch.testing.assert_close(rest, before, rtol=0, atol=0)


def test_piggyback_goes_straight_through_the_step() -> None:
    torch.manual_seed(0)
    scores, weight = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    used = masked(scores, weight, 0.3)
    assert torch.equal(used, torch.where(scores > 0.3, weight, 0.0))
    above = torch.randn(4, 5)
    (found,) = torch.autograd.grad(used, scores, above)
    assert torch.equal(found, above * weight)


@pytest.mark.parametrize("shape", [(8,), (3, 5), (2, 3, 3, 3), (1,)])
def test_packing_takes_one_bit_a_weight(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mask = torch.rand(shape) < 0.5
    packed = pack(mask)
    assert (packed.dtype, packed.shape) == (torch.uint8, (-(-mask.numel() // 8),))
    assert torch.equal(unpack(packed, torch.empty(shape, dtype=torch.float64)), mask.double())


def test_packing_puts_the_first_weight_in_the_lowest_bit() -> None:
    assert pack(torch.tensor([True, False, True] + [False] * 5 + [False, True])).tolist() == [5, 2]


@pytest.mark.parametrize("learn_first", [True, False])
def test_piggyback_keeps_bits_and_leaves_the_backbone(learn_first: bool) -> None:
    chosen = {"name": "piggyback", "learn_first": learn_first}
    learner, method, _, running = begun(method=chosen)
    start = tree.snapshot(tree.weights(learner.model.trunk))
    next(event for event in running if type(event) is TaskDone)
    first = tree.snapshot(tree.weights(learner.model.trunk))
    for _ in running:
        pass
    assert isinstance(method, Piggyback)
    torch.testing.assert_close(tree.weights(learner.model.trunk), first, rtol=0, atol=0)
    assert torch.equal(first["1.weight"], start["1.weight"]) is not learn_first
    sizes = {name: each.numel() for name, each in first.items() if each.dim() > 1}
    bits = {name: -(-count // 8) for name, count in sizes.items()}
    masks = [{name: each.numel() for name, each in mask.items()} for mask in method.masks]
    assert masks == [{} if learn_first else bits, bits, bits, bits]
    used = [unpack(mask["1.weight"], first["1.weight"]).mean() for mask in method.masks if mask]
    assert all(0.2 < share < 1 for share in used)


def test_piggyback_starts_each_task_with_all_weights() -> None:
    learner, method, stream, running = begun(method="piggyback")
    for event in running:
        if type(event) is TaskDone and event.task.index < 3:
            plain = learner.model.eval()(stream.tasks[3].test.scaled(stream.tasks[3].test.inputs[:100]), 3)
            assert torch.equal(answers(learner, method, stream, 3), plain)


def test_separate_networks_start_alike_and_share_nothing() -> None:
    model = {"name": "mlp", "hidden": [24, 16]}
    learner, method, stream, running = begun(method="separate", model=model)
    started = []
    for event in running:
        if type(event) is TaskStarted:
            started.append(tree.snapshot(tree.weights(learner.model.trunk)))
    for each in started[1:]:
        torch.testing.assert_close(each, started[0], rtol=0, atol=0)
    assert isinstance(method, Separate)
    assert len(method.networks) == len(stream)
    # A task is learned as if it were the only one.
    alone, naive, _, running = begun(method="naive", model=model)
    next(event for event in running if type(event) is TaskDone)
    torch.testing.assert_close(answers(alone, naive, stream, 0), answers(learner, method, stream, 0), rtol=0, atol=0)


def test_separate_networks_have_a_single_head_each() -> None:
    learner, method, stream, train = begun(method="separate", stream="permuted", head="single")
    kept = []
    for event in train:
        if type(event) is TaskDone:
            kept.append(answers(learner, method, stream, event.task.index))
    for index, before in enumerate(kept):
        assert torch.equal(answers(learner, method, stream, index), before)


def test_hat_holds_weights_between_used_units_and_no_others() -> None:
    learner, method, _, running = begun(method="hat", model={"name": "mlp", "hidden": [24, 16], "activation": "tanh"})
    next(event for event in running if type(event) is TaskDone)
    assert isinstance(method, HAT)
    first, second = (each > 0 for each in method.used.values())
    assert 0 < first.sum() < len(first)
    live = dict(learner.model.named_parameters())
    before = tree.snapshot(live)
    next(event for event in running if type(event) is TaskDone)
    stays = {name: live[name] == before[name] for name in before}
    # Pixels that are 0 in every image of the task give no gradient to the weights that they feed.
    seen = ~stays["trunk.1.weight"].all(0)
    assert stays["trunk.1.weight"][first].all()
    assert not stays["trunk.1.weight"][~first][:, seen].all(1).any()
    assert torch.equal(stays["trunk.1.bias"], first)
    assert torch.equal(stays["trunk.3.weight"], second[:, None] & first)
    assert torch.equal(stays["trunk.3.bias"], second)


def test_hat_uses_what_any_task_used() -> None:
    _, method, _ = trained(method="hat")
    assert isinstance(method, HAT)
    for name, used in method.used.items():
        masks = torch.stack([mask[name] for mask in method.masks])
        assert torch.equal(used > 0, masks.any(0))
        assert not masks.all()


def test_hat_answers_through_the_units_of_the_task_alone() -> None:
    learner, method, stream = trained(method="hat")
    assert isinstance(method, HAT)
    before = answers(learner, method, stream, 1)
    with torch.no_grad():
        for name in ("trunk.1", "trunk.4"):
            learner.model.get_submodule(name).weight[~method.masks[1][name]] += 7.0
    assert torch.equal(answers(learner, method, stream, 1), before)


@pytest.mark.parametrize(("cycles", "rises"), [(1, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (2, [0.0, 0.5, 1.0] * 2)])
def test_hat_follows_its_equations(cycles: int, rises: list[float]) -> None:
    """Attention, penalty and the embeddings' gradients of each step, worked out anew from the equations."""
    model = {"name": "mlp", "hidden": [6], "activation": "tanh"}
    chosen = {"name": "hat", "cycles": cycles, "s_max": 4.0, "sparsity": 0.5}
    made = {"method": chosen, "model": model, "steps": 6, "optimizer": {"name": "sgd"}, "lr": 0.05}
    learner, method, stream, running = begun(**made)
    assert isinstance(method, HAT)
    next(event for event in running if type(event) is TaskDone)
    next(event for event in running if type(event) is TaskStarted)
    used = method.used["trunk.1"].clone()
    task = stream.tasks[1].train.ready(learner.device)
    batch = Batch(task.scaled(task.inputs[:16]), task.targets[:16], 1)
    for step, rise in enumerate(rises):
        learner.clock.step = step
        learner.model.zero_grad()
        e = method.embeddings["trunk.1"]
        e.grad = None
        logits = method.forward(learner, batch)
        loss = method.loss(learner, batch, logits, F.cross_entropy(logits, batch.targets))
        loss.backward()
        method.before_step(learner)

        free, s = e.detach().clone().requires_grad_(), 1 / 4 + (4 - 1 / 4) * rise
        a = 1 / (1 + torch.exp(-s * free))
        weight, bias = (each.detach() for each in learner.model.trunk[1].parameters())
        hidden = torch.tanh(batch.inputs.flatten(1) @ weight.T + bias) * a
        entropy = F.cross_entropy(learner.model.head(hidden, 1), batch.targets)
        expected = entropy + 0.5 * (a * (1 - used)).sum() / (1 - used).sum()
        torch.testing.assert_close(loss, expected)
        (slope,) = torch.autograd.grad(expected, free)
        factor = 4 * (torch.cosh(s * free) + 1) / (s * (torch.cosh(free) + 1))
        torch.testing.assert_close(e.grad, slope * factor.detach(), rtol=1e-4, atol=1e-6)


def test_xdg_answers_through_the_open_units_of_the_task_alone() -> None:
    """Slowly: the network of the task is the one that only has its open units."""
    learner, method, stream = trained(method={"name": "xdg", "gated": 0.75}, model={"name": "mlp", "hidden": [24, 16]})
    first, second = (learner.model.trunk[1], learner.model.trunk[3])
    outs = []
    for task in range(4):
        gates = [gate.bool() for gate in learner.model.route.gates[task]]
        assert [int(gate.sum()) for gate in gates] == [6, 4]
        inputs, _ = next(stream.tasks[1].test.ready(learner.device).batches(100))
        hidden = torch.relu(inputs.flatten(1) @ first.weight[gates[0]].T + first.bias[gates[0]])
        hidden = torch.relu(hidden @ second.weight[gates[1]][:, gates[0]].T + second.bias[gates[1]])
        head = learner.model.head.blocks[task]
        outs.append(hidden @ head.weight[:, gates[1]].T + head.bias)
        torch.testing.assert_close(method.logits(learner, inputs, task), outs[-1], rtol=1e-5, atol=1e-5)
    # Samples of several tasks, as a buffer mixes them in.
    tasks = torch.arange(len(inputs)) % 2
    mixed = method.forward(learner, Batch(inputs, tasks, tasks))
    expected = torch.stack(outs[:2])[tasks, torch.arange(len(inputs))]
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


def test_xdg_trains_the_open_units_of_the_task_alone() -> None:
    learner, method, _, running = begun(method="xdg", model={"name": "mlp", "hidden": [24, 16], "activation": "tanh"})
    assert isinstance(method, XdG)
    next(event for event in running if type(event) is TaskDone)
    live = dict(learner.model.named_parameters())
    before = tree.snapshot(live)
    learner.optimizer.param_groups[0]["weight_decay"] = 0.0
    next(event for event in running if type(event) is TaskDone)
    first, second = (gate.bool() for gate in learner.model.route.gates[1])
    moved = {name: live[name] != before[name] for name in before}
    assert torch.equal(moved["trunk.1.bias"], first)
    assert torch.equal(moved["trunk.3.bias"], second)
    assert torch.equal(moved["trunk.3.weight"], second[:, None] & first)


def test_xdg_draws_gates_of_its_own_for_each_task_and_seed() -> None:
    drawn = [gating.drawn(seed, task, [40, 30], 0.5) for seed in range(2) for task in range(3)]
    for index, (first, second) in enumerate(drawn):
        assert [first.sum(), second.sum()] == [20, 15]
        assert not any(torch.equal(first, other[0]) for other in drawn[:index])
    torch.testing.assert_close(gating.drawn(1, 2, [40, 30], 0.5), drawn[-1], rtol=0, atol=0)
    assert [float(gate.sum()) for gate in gating.drawn(0, 0, [3, 1], 0.99)] == [1, 1]


@pytest.mark.parametrize("other", ["ewc", "mas"])
def test_importances_are_those_of_the_open_units(other: str) -> None:
    learner, method, _, running = begun(method=f"xdg+{other}", model={"name": "mlp", "hidden": [24, 16]})
    next(event for event in running if type(event) is TaskDone)
    importance = method.methods[other].anchor.weight
    first, second = (gate.bool() for gate in learner.model.route.gates[0])
    assert not importance["trunk.1.weight"][~first].any()
    assert not importance["trunk.3.weight"][:, ~first].any()
    assert not importance["trunk.3.weight"][~second].any()
    assert not importance["head.blocks.0.weight"][:, ~second].any()
    assert importance["trunk.3.weight"][second][:, first].any()


def test_what_looks_at_a_gated_network_looks_through_the_gates() -> None:
    learner, _, stream = trained(method="xdg", model={"name": "mlp", "hidden": [24, 16]})
    model = learner.model
    inputs, targets = next(stream.tasks[1].test.ready(learner.device).batches(6))
    apart = [model.head(model.features(inputs, task), task) for task in range(3)]
    assert not torch.allclose(model.features(inputs, 0), model.features(inputs, 1))
    torch.testing.assert_close(model.answers(inputs, range(3), model.trunk(inputs)), apart)
    torch.testing.assert_close(copy.deepcopy(model)(inputs, 2), apart[2])
    singles = [Batch(inputs[row : row + 1], targets[row : row + 1], task) for row, task in enumerate((0, 1, 2))]
    found = gradients.over_each(learner, learner.params, singles)
    for row, single in enumerate(singles):
        expected = gradients.over(learner, single)
        torch.testing.assert_close({name: each[row] for name, each in found.items()}, expected)
    with pytest.raises(InputError, match="features that are the same in all"):
        model.features(inputs)


def test_xdg_keeps_tasks_apart_where_layers_are_wide() -> None:
    reached = {}
    for name, method in {"xdg": {"name": "xdg", "gated": 0.9}, "naive": "naive"}.items():
        model = {"name": "mlp", "hidden": [256, 256]}
        learner, running, stream = trained(method=method, model=model, steps=100, train_samples=200)
        reached[name] = sum(accuracy(learner, running, task, task.test) for task in stream.tasks) / len(stream)
    assert reached["xdg"] > 0.95
    assert reached["naive"] < 0.9


def test_xdg_without_silent_units_is_fine_tuning() -> None:
    model = {"name": "mlp", "hidden": [24, 16]}
    ungated, _, _ = trained(method={"name": "xdg", "gated": 0.0}, model=model)
    naive, _, _ = trained(method="naive", model=model)
    torch.testing.assert_close(tree.weights(ungated.model), tree.weights(naive.model), rtol=0, atol=0)


@pytest.mark.parametrize("flatten_first", [True, False])
@pytest.mark.parametrize("method", ["hat", "progressive"])
def test_channels_that_are_flattened_stay_channels(method: str, flatten_first: bool) -> None:
    middle = [nn.Flatten(), nn.BatchNorm1d(4 * 64)] if flatten_first else [nn.BatchNorm2d(4), nn.Flatten()]
    layers = [nn.Conv2d(1, 4, 3, padding=1), *middle, nn.ReLU(), nn.Linear(256, 6), nn.Tanh(), nn.Linear(6, 2)]
    made = recipe(values(method, **OPTIMIZERS["adam"]))
    stream, running = build.stream(made), build.method(made)
    learner = build.learner(made, stream, nn.Sequential(*layers))
    kept = []
    for event in loop.train(learner, running, stream, build.schedule(made)):
        if type(event) is TaskDone:
            kept.append(answers(learner, running, stream, event.task.index))
    for index, before in enumerate(kept):
        assert torch.equal(answers(learner, running, stream, index), before)


@pytest.mark.parametrize(
    ("trunk", "what"),
    [
        (nn.Sequential(nn.Flatten(), nn.Bilinear(2, 2, 2)), "has a Bilinear"),
        (nn.TransformerEncoderLayer(8, 2), "has a TransformerEncoderLayer"),
        (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2)), "has a Conv2d"),
        (nn.Sequential(nn.Flatten()), "has none"),
    ],
)
def test_other_trunks_are_refused(trunk: nn.Module, what: str) -> None:
    with pytest.raises(InputError, match=f"method hat needs a trunk that is a sequence of .* layers, .*{what}"):
        stages(trunk, "hat")


def test_a_layer_that_occurs_twice_is_refused() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(InputError, match="has a Linear"):
        stages(nn.Sequential(layer, nn.ReLU(), layer), "hat")


def test_hat_refuses_normalisation_that_mixes_units() -> None:
    with pytest.raises(InputError, match="GroupNorm mixes them"):
        trained(method="hat", model={"name": "convnet", "channels": [8], "norm": "group"})


@pytest.mark.parametrize("method", ["piggyback", "hat"])
def test_an_early_stop_puts_back_what_the_method_trains(method: str) -> None:
    learner, running, stream, train = begun(method={"name": method, **FIRST.get(method, {})}, validation=0.3)
    stopping = EarlyStopping(patience=1)
    seen: list[dict[str, Tensor]] = []
    for event in train:
        if type(event) is TaskStarted:
            stopping.start()
        if type(event) is Step:
            stopping.look(learner, running, stream.tasks[0])
            if stopping.waited == 0:
                seen.append(tree.snapshot(learner.trained))
            learner.clock.stop_task = len(seen) > 0 and stopping.waited > 2
        if type(event) is StepsDone:
            break
    assert stopping.waited > 0
    stopping.finish(learner)
    torch.testing.assert_close(tree.snapshot(learner.trained), seen[-1], rtol=0, atol=0)
    assert any(not name.startswith(("trunk.", "head.")) for name in seen[-1])


def columns_of(method: Progressive, model: list[int], inputs: Tensor) -> list[list[Tensor]]:
    """Hidden layers of each column of an mlp, worked out anew from the equations."""
    found: list[list[Tensor]] = []
    for column, weights in enumerate(method.columns):
        hidden = [inputs.flatten(1)]
        for place in range(len(model)):
            layer = 1 + 2 * place
            sums = hidden[-1] @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
            if column and place:
                sums = sums + lateral(method, column, f"{place}", [each[place] for each in found])
            hidden.append(sums.clamp(min=0))
        found.append(hidden)
    return found


def lateral(method: Progressive, column: int, place: str, below: list[Tensor]) -> Tensor:
    scale, down, up = (method.adapters[column][f"{place}.{part}"].detach() for part in ("scale", "down", "up"))
    together = torch.cat([scale[k] * each for k, each in enumerate(below)], 1)
    return (together @ down.T).clamp(min=0) @ up.T


def test_progressive_columns_follow_their_equation() -> None:
    hidden = [12, 10, 8]
    learner, method, stream = trained(method="progressive", model={"name": "mlp", "hidden": hidden})
    assert isinstance(method, Progressive)
    for index, task in enumerate(stream.tasks):
        inputs, _ = next(task.test.ready(learner.device).batches(100))
        columns = columns_of(method, hidden, inputs)
        expected = learner.model.head(columns[index][-1], index)
        if index:
            expected = expected + lateral(method, index, "head", [each[-1] for each in columns[:index]])
        torch.testing.assert_close(answers(learner, method, stream, index), expected)


def test_progressive_columns_grow_and_start_afresh() -> None:
    _, method, stream = trained(method="progressive", model={"name": "convnet", "channels": [6, 8]})
    assert isinstance(method, Progressive)
    assert len(method.columns) == len(method.adapters) == len(stream)
    assert method.adapters[0] == {}
    for index in range(1, len(stream)):
        shapes = {name: tuple(each.shape) for name, each in method.adapters[index].items()}
        classes = len(stream.tasks[index].classes)
        assert shapes == {
            "1.scale": (index,),
            "1.down": (6, 6 * index, 1, 1),
            "1.up": (8, 6, 3, 3),
            "head.scale": (index,),
            "head.down": (8, 8 * index),
            "head.up": (classes, 8),
        }


def test_progressive_adapters_are_trained_with_their_column_only() -> None:
    learner, method, _, running = begun(method="progressive")
    assert isinstance(method, Progressive)
    ended: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for event in running:
        if type(event) is TaskStarted and event.task.index:
            begin = tree.snapshot(method.adapters[event.task.index])
            trunk = tree.snapshot(tree.weights(learner.model.trunk))
            assert not torch.equal(trunk["1.weight"], method.columns[0]["1.weight"])
        if type(event) is TaskDone:
            index = event.task.index
            ended.append((tree.snapshot(method.columns[index]), tree.snapshot(method.adapters[index])))
            assert not index or not any(torch.equal(each, begin[name]) for name, each in ended[-1][1].items())
    for index, (column, adapters) in enumerate(ended):
        torch.testing.assert_close(method.columns[index], column, rtol=0, atol=0)
        torch.testing.assert_close(tree.snapshot(method.adapters[index]), adapters, rtol=0, atol=0)


def shapes(learner: Learner) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in learner.model.named_parameters()}


def test_growing_adds_units_while_the_loss_is_high() -> None:
    learner, method, _, running = begun(method={**GROWING, "drift": 1e9}, model={"name": "mlp", "hidden": [10, 8]})
    assert isinstance(method, Growing)
    widths = [list(method.hidden) for event in running if type(event) is Step]
    # 9 steps a task, a look after each third, 3 units at a time, up to 3 times the first width.
    assert widths[:9] == [[10, 8]] * 2 + [[13, 11]] * 3 + [[16, 14]] * 3 + [[19, 17]]
    assert widths[-1] == [30, 24]
    # A head keeps the width that its task ended with.
    assert method.widths[0] == [19, 17]
    found = shapes(learner)
    assert (found["trunk.1.weight"], found["trunk.3.weight"]) == ((30, 64), (24, 30))
    assert [found[f"head.blocks.{k}.weight"][1] for k in range(4)] == [each[1] for each in method.widths]


def test_growing_stays_as_it_is_where_the_loss_is_low() -> None:
    _, method, _ = trained(method={**GROWING, "threshold": 1e9, "drift": 1e9})
    assert isinstance(method, Growing)
    assert method.hidden == method.first == [24, 16]


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [10, 8]}, {"name": "convnet", "channels": [4, 4]}])
def test_growing_does_not_change_the_answers_of_the_moment(model: dict[str, Any]) -> None:
    learner, method, stream, running = begun(method={**GROWING, "threshold": 1e9}, model=model)
    next(event for event in running if type(event) is Step)
    assert isinstance(method, Growing)
    before = answers(learner, method, stream, 0)
    with torch.no_grad():
        method._grow(learner)
    assert method.hidden > method.first
    torch.testing.assert_close(answers(learner, method, stream, 0), before)
    # What is new learns: its outgoing weights first, then all of it.
    for _ in range(3):
        next(running)
    name, width = ("trunk.3.weight", 10) if model["name"] == "mlp" else ("trunk.4.weight", 4)
    assert learner.model.get_parameter(name)[:, width:].any()


def test_growing_splits_units_that_drifted() -> None:
    """A copy takes the place of such a unit in the task, and the unit goes back to what it was."""
    chosen = {**GROWING, "threshold": 1e9, "drift": 0.3, "most": 1.5, "retrain": 0.0}
    model = {"name": "mlp", "hidden": [10, 8], "activation": "tanh"}
    learner, method, stream, running = begun(method=chosen, model=model)
    next(event for event in running if type(event) is TaskDone)
    next(event for event in running if type(event) is TaskStarted)
    assert isinstance(method, Growing)
    was = tree.snapshot(tree.weights(learner.model))
    torch.manual_seed(0)
    moved = [2, 5, 7]
    with torch.no_grad():
        learner.model.get_parameter("trunk.1.weight")[moved] += 1.0
        learner.model.get_parameter("trunk.3.weight").add_(0.001)
        now = tree.snapshot(tree.weights(learner.model))
        method._split(learner)
    live = tree.snapshot(tree.weights(learner.model))
    assert method.hidden == [13, 8]
    copies = [int((live["trunk.1.weight"][10:] == now["trunk.1.weight"][unit]).all(1).nonzero()) for unit in moved]
    assert sorted(copies) == [0, 1, 2]
    assert torch.equal(live["trunk.1.weight"][:10], was["trunk.1.weight"])
    assert torch.equal(live["trunk.3.weight"][:, 10:][:, copies], now["trunk.3.weight"][:, moved])
    assert torch.equal(live["trunk.3.weight"][:, moved], was["trunk.3.weight"][:, moved])
    others = [unit for unit in range(10) if unit not in moved]
    assert torch.equal(live["trunk.3.weight"][:, others], now["trunk.3.weight"][:, others])
    assert learner.model.head.blocks[0].weight.shape == (len(stream.tasks[0].classes), 8)


def test_growing_splits_the_most_drifted_where_room_is_scarce() -> None:
    learner, method, _, running = begun(method={**GROWING, "threshold": 1e9, "most": 1.2, "drift": 0.01})
    for event in running:
        if type(event) is TaskDone and event.task.index == 1:
            break
    assert isinstance(method, Growing)
    assert method.hidden == [int(1.2 * 24), int(1.2 * 16)]
    assert shapes(learner)["trunk.4.weight"] == (19, 28)


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [10, 8]}, {"name": "convnet", "channels": [4, 4]}])
def test_growing_answers_old_tasks_with_the_units_of_their_time(model: dict[str, Any]) -> None:
    # So strong a pull holds the old weights where they are, but for rounding.
    chosen = {**GROWING, "strength": 1e4, "drift": 1e9, "added": 1}
    sgd = {"name": "sgd"}
    learner, method, stream, running = begun(method=chosen, model=model, optimizer=sgd, lr=1e-5)
    assert isinstance(method, Growing)
    kept = []
    for event in running:
        if type(event) is TaskDone:
            kept.append(answers(learner, method, stream, event.task.index))
    assert method.widths[0] != method.widths[-1]
    for index, before in enumerate(kept):
        torch.testing.assert_close(answers(learner, method, stream, index), before, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        for name, each in learner.model.named_parameters():
            if name.startswith("trunk.") and each.dim() > 1:
                each[method.widths[0][0 if each.shape[0] == method.hidden[0] else 1] :] += 5.0
    torch.testing.assert_close(answers(learner, method, stream, 0), kept[0], rtol=1e-3, atol=1e-3)


def test_growing_pulls_old_weights_back() -> None:
    learner, method, _, running = begun(method={**GROWING, "strength": 0.5, "drift": 1e9}, tasks=2)
    next(event for event in running if type(event) is TaskDone)
    next(event for event in running if type(event) is TaskStarted)
    assert isinstance(method, Growing)
    expected = {}
    with torch.no_grad():
        method._grow(learner)
        for name, each in learner.params.items():
            each += 0.1
            each.grad = torch.full_like(each, 3.0)
            expected[name] = torch.full_like(each, 3.0)
            if name in method.start:
                old = tuple(slice(count) for count in method.start[name].shape)
                expected[name][old] += 0.5 * (each[old] - method.start[name])
    method.before_step(learner)
    assert any(name.startswith("head.") for name in expected)
    torch.testing.assert_close(tree.snapshot(tree.gradients(learner.params)), expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimiser_follows_growth(optimizer: str) -> None:
    learner, method, _, running = begun(method=GROWING, **OPTIMIZERS[optimizer])
    for _ in running:
        for parameter, kept in learner.optimizer.state.items() if learner.clock.total_steps else ():
            assert all(not each.dim() or each.shape == parameter.shape for each in kept.values())
    assert isinstance(method, Growing)
    assert method.hidden > method.first


def sizes_told(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """What layers say of themselves."""
    told = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            told[f"{name}.weight"] = (module.out_features, module.in_features)
        elif isinstance(module, nn.Conv2d):
            told[f"{name}.weight"] = (module.out_channels, module.in_channels, *module.kernel_size)
        elif isinstance(module, nn.BatchNorm2d):
            told[f"{name}.running_mean"] = (module.num_features,)
    return told


@pytest.mark.parametrize("model", MODELS)
def test_layers_that_grew_say_how_wide_they_are(model: str) -> None:
    learner, method, _ = trained(method=GROWING, model=MODELS[model], tasks=3)
    assert isinstance(method, Growing)
    assert method.hidden > method.first
    told = sizes_told(learner.model)
    assert told == {name: tuple(learner.model.state_dict()[name].shape) for name in told}

    made = recipe(values(GROWING, model=MODELS[model], tasks=3))
    stream, again = build.stream(made), build.method(made)
    fresh = build.learner(made, stream)
    tensors: dict[str, Tensor] = {}
    saved = {"learner": state.save_learner(learner, tensors), "method": state.capture(method, "method", tensors)}
    state.restore(again, saved["method"], "method", tensors, fresh.device)
    state.load_learner(fresh, again, stream, saved["learner"], tensors, keep=False)
    assert sizes_told(fresh.model) == told


def test_an_early_stop_of_a_network_that_grew() -> None:
    parameters = []
    for seed in range(3):
        running = events(recipe(values(GROWING, seed=seed, validation=0.3, early_stopping=1, steps=30)))
        finished = [event for event in running if isinstance(event, Finished)]
        parameters.append(finished[0].result["parameters"])
    assert min(parameters) > 64 * 24 + 24 + 24 * 16 + 16 + 10 * 16 + 10
