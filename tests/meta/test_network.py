"""Which modules can have a task axis, how batches of tasks are computed, and what is said where adaptation diverges."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from meta.problems import WAYS, convnet, curves, leaves, picture_tasks, pictures
from torch import Tensor, nn

from lifelong.errors import DivergedError, InputError
from lifelong.meta import (
    IMAML,
    MAML,
    Engine,
    Episodes,
    FineTuning,
    MetaLearner,
    Problem,
    ProtoNet,
    Reptile,
    Sinusoids,
    engine,
    task_network,
)
from lifelong.meta.columns import Window, to_columns
from lifelong.meta.episodes import accuracy, cross_entropy
from lifelong.meta.network import FORMULATIONS, Formulation, part
from lifelong.meta.room import bytes_of, fitting
from lifelong.tree import Params


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return inputs.flatten(1)


def test_a_module_that_writes_to_its_buffers_is_named() -> None:
    trunk = nn.Sequential(Counting(), nn.Linear(4, 3))
    with pytest.raises(InputError, match=r"Counting writes to its buffer '0\.calls'.*: have it compute what it needs"):
        task_network(trunk, nn.Linear(3, 2), torch.zeros(2, 4))
    trunk = nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True), nn.Flatten())
    with pytest.raises(InputError, match=r"InstanceNorm2d .* '0.running_mean'.*track_running_stats=False"):
        task_network(trunk, nn.Linear(4, 2), torch.rand(2, 1, 2, 2))


def test_a_batch_norm_that_extends_pytorchs_and_keeps_statistics_is_named() -> None:
    with pytest.raises(InputError, match=r"Doubled writes to its buffer '1\.running_mean'"):
        task_network(block(Doubled(4)), nn.Linear(4, 2), torch.rand(2, 1, 9, 9))


def test_layers_that_are_not_written_out_are_left_to_vmap() -> None:
    trunk = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with pytest.raises(InputError, match=r"formulation columns knows sequences of .* take vmap, loop or auto"):
        task_network(trunk, nn.Linear(4, 2), torch.zeros(2, 4), formulation="columns")
    network = task_network(trunk, nn.Linear(4, 2), torch.zeros(2, 4))
    assert {each.formulation for each in engine.candidates(network.trunk, torch.zeros(2, 4), 8, 2)} == {"vmap"}


class Residual(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = inputs + super().forward(inputs)
        return outputs


class Standardised(nn.Conv2d):
    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(inputs, weight, self.bias, self.stride, self.padding)


def block(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def one_activation() -> nn.Sequential:
    bend = nn.Softplus()
    return block(nn.BatchNorm2d(4), bend, conv(), nn.BatchNorm2d(4), bend)


def one_convolution() -> nn.Sequential:
    twice = conv()
    return block(nn.Tanh(), twice, nn.Tanh(), twice)


def one_batch_norm() -> nn.Sequential:
    twice = nn.BatchNorm2d(4, affine=False)
    return block(twice, nn.Tanh(), conv(), twice)


def one_weight() -> nn.Sequential:
    first, second = conv(), conv()
    second.weight = first.weight
    return block(nn.Tanh(), first, nn.Tanh(), second)


def hooked() -> nn.Sequential:
    layer = conv()
    layer.register_forward_hook(lambda _, given, made: made + given[0])
    return block(nn.Tanh(), layer)


def overridden() -> nn.Sequential:
    layer = nn.Tanh()
    layer.forward = lambda inputs: inputs.sin()  # type: ignore[method-assign]
    return block(layer, conv())


def reparametrised() -> nn.Sequential:
    layer = conv()
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Tanh())
    return block(nn.Tanh(), layer)


@pytest.mark.parametrize(
    ("make", "written_out"),
    [
        (one_activation, True),
        (one_convolution, False),
        (lambda: block(Residual(nn.Tanh(), conv()), nn.BatchNorm2d(4)), False),
        (lambda: block(nn.Tanh(), Standardised(4, 4, 3, padding=1), nn.BatchNorm2d(4)), False),
        (one_batch_norm, False),
        (one_weight, False),
        (hooked, False),
        (overridden, False),
        (reparametrised, False),
    ],
    ids=[
        "an activation twice",
        "a convolution twice",
        "a residual sequence",
        "a convolution of standardised weights",
        "a batch norm twice",
        "a weight twice",
        "a hook",
        "a forward of its own",
        "a reparametrised weight",
    ],
)
def test_every_formulation_computes_what_the_module_does(make: Callable[[], nn.Module], written_out: bool) -> None:
    def problem(formulation: Formulation) -> Problem:
        torch.manual_seed(0)
        trunk, head = make().double(), nn.Linear(4, WAYS).double()
        sample = torch.rand(2, 1, 9, 9, dtype=torch.float64)
        return Problem(task_network(trunk, head, sample, formulation=formulation), cross_entropy, accuracy)

    def gradient(formulation: Formulation) -> Params:
        asked, algorithm = problem(formulation), MAML(steps=2, rate=0.3)
        meta = leaves(algorithm.parameters(asked))
        return engine.gradient(algorithm, asked, Engine(formulation, 2), meta, {}, picture_tasks(), 0).gradient

    trunk = problem("loop").network.trunk
    offered = {each.formulation for each in engine.candidates(trunk, picture_tasks().support[0], 8, 1)}
    assert offered == ({"grouped", "columns", "vmap"} if written_out else {"vmap"})
    for formulation in FORMULATIONS[:2]:
        if not written_out:
            with pytest.raises(
                InputError, match=f"formulation {formulation} knows .* the model holds others: take vmap"
            ):
                problem(formulation)
    expected = gradient("loop")
    for formulation in offered:
        for name, each in gradient(formulation).items():
            torch.testing.assert_close(each, expected[name], rtol=1e-9, atol=1e-12)


class Doubled(nn.BatchNorm2d):
    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


def doubled() -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(4, track_running_stats=False)
    layer.register_forward_hook(lambda _, given, made: 2 * made)
    return layer


@pytest.mark.parametrize("layer", [Doubled(4, track_running_stats=False), doubled()], ids=["a class", "a hook"])
def test_a_batch_norm_that_does_more_is_not_replaced(layer: nn.BatchNorm2d) -> None:
    trunk = block(layer).double()
    inputs = torch.rand(2, 1, 9, 9, dtype=torch.float64)
    network = task_network(trunk, nn.Linear(4, 2).double(), inputs)
    weights = {name: each.unsqueeze(0) for name, each in network.initial().items()}
    torch.testing.assert_close(network.features(weights, inputs.unsqueeze(0))[0], trunk(inputs))


def test_the_module_that_is_given_stays_as_it_is() -> None:
    trunk = convnet()
    before = {name: each.clone() for name, each in trunk.state_dict().items()}
    network = task_network(trunk, nn.Linear(4, 2), torch.rand(4, 1, 9, 9))
    weights = {name: each.unsqueeze(0) + 1 for name, each in network.initial().items()}
    network.features(weights, torch.rand(1, 4, 1, 9, 9))
    assert all(torch.equal(each, before[name]) for name, each in trunk.state_dict().items())


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("formulation", ["grouped", "columns"])
def test_every_task_has_its_own_weights(formulation: Formulation, pool: bool) -> None:
    problem = pictures(formulation, pool=pool)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(3, *each.shape, generator=generator, dtype=each.dtype)
        for name, each in problem.network.initial().items()
    }
    inputs = torch.rand(3, 5, 1, 9, 9, generator=generator, dtype=torch.float64)
    found = problem.network.features(weights, inputs)
    plain = convnet(pool).double().train()
    for task in range(3):
        mine = {name: each[task] for name, each in part(weights, "trunk").items()}
        expected = torch.func.functional_call(plain, mine, (inputs[task],))
        torch.testing.assert_close(found[task], expected)


@pytest.mark.parametrize("formulation", ["grouped", "columns"])
def test_pooling_before_a_relu_gives_the_same_numbers_and_gradients(formulation: Formulation) -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).double()
    network = task_network(trunk, nn.Linear(48, 2).double(), torch.rand(2, 1, 8, 8).double(), formulation=formulation)
    weights = {name: each.expand(2, *each.shape).clone().requires_grad_() for name, each in network.initial().items()}
    inputs = torch.randn(2, 5, 1, 8, 8, dtype=torch.float64)
    inputs[:, 0] = -3.0  # pictures of one colour: all places of a window tie
    found = network.features(weights, inputs)
    expected = trunk(inputs.flatten(0, 1)).view(2, 5, -1)
    torch.testing.assert_close(found, expected)
    factors = torch.randn_like(expected)
    (found * factors).sum().backward()
    (expected * factors).sum().backward()
    for name, each in trunk.named_parameters():
        torch.testing.assert_close(weights[f"trunk.{name}"].grad.sum(0), each.grad)  # type: ignore[union-attr]


def test_columns_and_their_adjoint() -> None:
    """`<to_columns(x), y> = <x, from_columns(y)>`, and both are as `torch.nn.functional.unfold` has them."""
    window = Window((3, 2), (2, 1), (1, 0), (5, 4))
    generator = torch.Generator().manual_seed(0)
    pictures_ = torch.randn(2, 3, 5, 4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    columns = to_columns(pictures_, window)
    flat = pictures_.flatten(0, 1).permute(0, 3, 1, 2)
    unfolded = nn.functional.unfold(flat, (3, 2), stride=(2, 1), padding=(1, 0))
    ordered = unfolded.view(2, 3, 2, 6, -1).permute(0, 1, 4, 3, 2).reshape(2, -1, 12)
    torch.testing.assert_close(columns, ordered)
    other = torch.randn(columns.shape, generator=generator, dtype=torch.float64)
    (ours,) = torch.autograd.grad((columns * other).sum(), pictures_, retain_graph=True)
    (theirs,) = torch.autograd.grad((ordered * other).sum(), pictures_)
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradgradcheck(lambda x: to_columns(x, window).square(), (pictures_,))


def test_chunks_and_threads_do_not_matter() -> None:
    problem, episodes = pictures("columns"), picture_tasks(tasks=5)
    meta = leaves(problem.network.initial())
    expected = engine.gradient(MAML(), problem, Engine("columns", 5), meta, {}, episodes, 0)
    for at_once, threads in ((1, 1), (2, 2), (3, 4)):
        found = engine.gradient(MAML(), problem, Engine("columns", at_once, threads), meta, {}, episodes, 0)
        torch.testing.assert_close(found.losses, expected.losses)
        for name, each in found.gradient.items():
            torch.testing.assert_close(each, expected.gradient[name])


def test_a_choice_by_hand_is_kept() -> None:
    def make(formulation: Formulation) -> Problem:
        return pictures(formulation)

    episodes = picture_tasks()
    by_hand = engine.choose(MAML(), make, episodes, formulation="loop", tasks_at_once=2, threads=3)
    assert by_hand == Engine("loop", 2, 3)
    measured = engine.choose(MAML(), make, episodes, threads=1)
    assert measured in engine.candidates(make("vmap").network.trunk, episodes.support[0], len(episodes), 1)


class Rows(nn.Module):
    """Pictures as sequences of their rows, through a recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.GRU(9, 4, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        last: Tensor = self.cells(inputs.squeeze(1))[1][0]
        return last


class Scaled(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs / float(inputs.abs().max())


@pytest.mark.parametrize(
    ("trunk", "able"),
    [
        (Rows(), {"loop"}),
        (nn.Sequential(nn.Flatten(), Scaled(), nn.Linear(81, 4)), {"loop"}),
        (nn.Sequential(nn.Linear(9, 9), nn.Flatten(), nn.Linear(81, 4)), {"vmap"}),
    ],
    ids=["a recurrent network", "a number taken out", "rows through a linear layer"],
)
def test_loop_is_chosen_where_no_other_formulation_can(trunk: nn.Module, able: set[str]) -> None:
    def make(formulation: Formulation) -> Problem:
        torch.manual_seed(0)
        sample = torch.rand(2, 1, 9, 9, dtype=torch.float64)
        network = task_network(trunk.double(), nn.Linear(4, WAYS).double(), sample, formulation=formulation)
        return Problem(network, cross_entropy, accuracy)

    episodes = picture_tasks()
    assert {engine.choose(MAML(), make, episodes, threads=1).formulation} == able
    for formulation in {*FORMULATIONS} - able - {"loop"}:
        with pytest.raises(
            InputError, match=f"^formulation {formulation} .*: take (vmap, loop or|loop, which can, or) auto$"
        ):
            make(formulation)  # type: ignore[arg-type]
    # `loop` really learns: a step along the gradient that it gives makes the loss less.
    problem, algorithm = make("loop"), MAML(rate=0.1)
    meta, how = leaves(problem.network.initial()), Engine("loop", 2)
    before = engine.gradient(algorithm, problem, how, meta, {}, episodes, 0)
    moved = leaves({name: each.detach() - 0.01 * before.gradient[name] for name, each in meta.items()})
    after = engine.gradient(algorithm, problem, how, moved, {}, episodes, 0)
    assert after.losses.mean() < before.losses.mean()


@pytest.mark.parametrize("formulation", FORMULATIONS[:2])
def test_batch_norm_of_sequences_is_left_to_vmap(formulation: Formulation) -> None:
    trunk = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Flatten())
    with pytest.raises(InputError, match=r"\(batch norm is written out for vectors and pictures, not for 2-d\)"):
        task_network(trunk, nn.Linear(6, 2), torch.rand(4, 2, 3), formulation=formulation)


def test_the_fastest_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(engine.time, "perf_counter", lambda: clock[0])

    def measured(how: Engine) -> None:
        if how.formulation == "vmap":
            raise torch.OutOfMemoryError
        clock[0] += {"grouped": 3.0, "columns": 2.0}[how.formulation]

    tried = [Engine("vmap", 8), Engine("grouped", 8), Engine("columns", 8)]
    assert engine.fastest(measured, tried) == tried[2]
    assert engine.fastest(measured, tried[:1]) == Engine("vmap", 4)  # what does not fit is halved


def test_a_diverging_inner_loop_names_task_step_and_rate() -> None:
    problem = pictures("columns")
    wide = replace(problem, loss=lambda outputs, targets: cross_entropy(outputs.pow(3), targets))
    algorithm = MAML(steps=4, test_steps=4, rate=1e60)
    with pytest.raises(
        DivergedError,
        match=r"loss of task 1 of 3 is not a finite number in iteration 8, at inner step \d with rate = 1e\+60",
    ):
        engine.gradient(
            algorithm, wide, Engine("columns", 2), leaves(problem.network.initial()), {}, picture_tasks(), 7
        )


def tried(
    algorithm: MetaLearner, problem: Problem, episodes: Episodes, factor: float = 1.0, iteration: int = 0
) -> None:
    meta = {name: factor * each for name, each in algorithm.parameters(problem).items()}
    how = Engine(problem.network.formulation, 2)
    engine.gradient(algorithm, problem, how, leaves(meta), algorithm.buffers(problem), episodes, iteration)


@pytest.mark.parametrize("algorithm", [MAML, IMAML, functools.partial(Reptile, inner="sgd")])
def test_the_step_that_diverges_is_one_of_training(algorithm: Callable[..., MetaLearner]) -> None:
    """Tests take more steps; here it is the next one at which answers are not finite, and in training their loss."""
    episodes = Sinusoids(shots=4, queries=4, dtype=torch.float64).draw(3, torch.Generator().manual_seed(0))
    with pytest.raises(DivergedError, match=r"in iteration 1, at inner step 2 with rate = 1e\+80: try a smaller one"):
        tried(algorithm(steps=2, test_steps=10, rate=1e80), curves(), episodes)


@pytest.mark.parametrize("algorithm", [MAML(), FineTuning(), ProtoNet()])
def test_weights_that_are_no_numbers_are_blamed_on_the_outer_rate(algorithm: MetaLearner) -> None:
    problem, episodes = pictures("columns"), picture_tasks()
    with pytest.raises(DivergedError, match=r"the loss of task 1 of 3 .* in iteration 3: try a smaller lr, or clip"):
        tried(algorithm, problem, episodes, factor=float("nan"), iteration=2)
    with pytest.raises(DivergedError, match=r"in iteration 1, before anything is learned: look for such numbers"):
        tried(algorithm, problem, episodes, factor=float("nan"))


def test_the_head_must_take_what_the_trunk_makes() -> None:
    with pytest.raises(InputError, match="the head takes 5 features, and the trunk makes 4"):
        task_network(convnet(), nn.Linear(5, 2), torch.rand(2, 1, 9, 9))


def test_no_more_tasks_at_once_than_fit_into_memory() -> None:
    engines = [Engine("grouped", 16, 2), Engine("columns", 16, 2), Engine("columns", 8, 2), Engine("vmap", 32, 1)]
    sizes = {"grouped": 100, "columns": 10, "vmap": 1000}
    assert fitting(engines, sizes.__getitem__, 200) == [
        Engine("grouped", 1, 2),
        Engine("columns", 10, 2),
        engines[2],
        Engine("vmap", 1, 1),
    ]
    assert fitting(engines[:1], sizes.__getitem__, 150) == [Engine("grouped", 1, 1)]  # not one a thread
    assert fitting(engines, lambda _: 0, 200) == engines


def test_the_memory_of_work_is_what_its_tensors_hold_at_once() -> None:
    def chain() -> None:
        total = torch.ones(1000)  # 4 kB
        for _ in range(5):
            total = total * 2  # another 4 kB, and what it was is freed
        total.view(10, 100).add_(1)

    assert bytes_of(chain) == 8000
    weight = torch.ones(1000, requires_grad=True)
    # The results of two steps are held for the way back; the third, 0-d, takes 4 bytes.
    assert 8004 <= bytes_of(lambda: weight.exp().exp().sum()) <= 8100
    assert bytes_of(lambda: weight.view(10, 100)) == 0


def test_a_chosen_engine_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def a_hundred(work: Callable[[], object]) -> int:
        asked.append(work())
        return 100

    monkeypatch.setattr(engine, "bytes_of", a_hundred)
    monkeypatch.setattr(engine, "room", lambda device: 150)
    found = engine.choose(MAML(), pictures, picture_tasks(tasks=6), threads=2)
    assert (found.tasks_at_once, found.threads) == (1, 1)
    assert len(asked) == 3  # once for each formulation
    by_hand = engine.choose(MAML(), pictures, picture_tasks(tasks=6), formulation="vmap", tasks_at_once=6, threads=2)
    assert by_hand == Engine("vmap", 6, 2)
