"""Per-sample moments against one backward pass a sample, for each kind of layer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from reference.curvature import assert_same, directions, loop_moments
from reference.networks import Tied, Twice
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong.curvature import per_sample_moments, rules
from lifelong.errors import InputError

BATCHES = (3, 5, 1)


def made(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = build().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter)
    return model


def reals(*shape: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(n, *shape, dtype=torch.float64), torch.randint(3, (n,))) for n in BATCHES]


def tokens(length: int, words: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randint(words, (n, length)), torch.randint(3, (n,))) for n in BATCHES]


def check(model: nn.Module, batches: list[tuple[Tensor, Tensor]], power: int) -> dict[str, Tensor]:
    model.train()
    found = per_sample_moments(model, model, batches, directions, power=power)
    model.eval()
    expected = loop_moments(model, model, batches, directions, power)
    assert_same(found, expected)
    return found


class Mean(nn.Module):
    """The mean over all dimensions but the batch's and the last."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1, -2).mean(1) if inputs.ndim > 2 else inputs


class TwiceConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, inputs: Tensor) -> Tensor:
        once = self.norm(self.shared(inputs)).tanh()
        return self.norm(self.shared(once)).tanh().mean((2, 3))


class TiedFunctionally(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.between = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(self.between(self.embed(inputs)).tanh().mean(1), self.embed.weight)


class Own(nn.Module):
    """Parameters that no layer with a rule holds."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(5))
        self.linear = nn.Linear(5, 3)
        self.matrix = nn.Parameter(torch.randn(3, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear((inputs * self.gain).sin()) @ self.matrix


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        mixed, _ = self.attention(inputs, inputs, inputs)
        return self.out(mixed.mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.out = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.lstm(inputs)[0][:, -1])


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 3)
        self.idle = nn.Linear(4, 3)
        self.alone = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs).tanh()


class SequenceFirst(nn.Module):
    """A layer that sees `[length, batch, width]`: its first dimension is not that of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.inner(inputs.transpose(0, 1)).tanh().mean(0))


class Flattened(nn.Module):
    """A layer that sees `[batch * length, width]`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs.flatten(0, 1)).tanh().view(*inputs.shape[:2], 3).mean(1)


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(input=self.inner(input=inputs).tanh())


class Reparametrised(nn.Module):
    """A layer whose weight is used both by its call and elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4, bias=False)
        self.out = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.inner(inputs).tanh()) * self.inner.weight.square().mean()


class UnderTwoNames(nn.Module):
    """One module, without a rule, that is registered and called under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Own4()
        self.second = self.first
        self.out = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.second(self.first(inputs).tanh()).tanh())


class TiedOwn(nn.Module):
    """A parameter without a rule that two modules hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Own4(), Own4()
        self.second.gain = self.first.gain
        self.out = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.second(self.first(inputs).tanh()).tanh())


class Branching(nn.Module):
    """Takes another way for each sample, which is beyond `vmap`."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(4))
        self.out = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        ways = [(row * self.gain).sin() if float(row.sum()) > 0 else (row * self.gain).cos() for row in inputs]
        return self.out(torch.stack(ways))


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[tuple[Tensor, Tensor]]]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)), lambda: reals(5)),
    "linear, one sequence dimension": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), Mean(), nn.Linear(4, 3)),
        lambda: reals(6, 5),
    ),
    "linear, two sequence dimensions": (
        lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), Mean()),
        lambda: reals(2, 3, 5),
    ),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten()), lambda: reals(2, 7)),
    "conv1d, everything": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 6, 3, stride=2, padding=3, dilation=2, groups=2, padding_mode="circular"),
            nn.Tanh(),
            nn.Flatten(),
        ),
        lambda: reals(4, 8),
    ),
    "conv1d, same": (
        lambda: nn.Sequential(nn.Conv1d(2, 2, 4, padding="same", dilation=2, bias=False), nn.Tanh(), nn.Flatten()),
        lambda: reals(2, 7),
    ),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten()), lambda: reals(2, 5, 6)),
    "conv2d, stride and padding": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, (3, 2), stride=(2, 3), padding=(1, 0)), nn.Tanh(), nn.Flatten()),
        lambda: reals(2, 6, 7),
    ),
    "conv2d, same and dilation": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(2, 1), bias=False), nn.Flatten(), nn.Tanh()
        ),
        lambda: reals(2, 5, 6),
    ),
    "conv2d, groups and reflection": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=2, groups=4, padding_mode="reflect"), nn.Tanh(), nn.Flatten()),
        lambda: reals(4, 4, 5),
    ),
    "conv2d, replication": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=(1, 2), padding_mode="replicate"), nn.Tanh(), nn.Flatten()),
        lambda: reals(2, 4, 4),
    ),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Flatten()), lambda: reals(2, 3, 4, 3)),
    "conv3d, everything": (
        lambda: nn.Sequential(
            nn.Conv3d(4, 4, (2, 3, 2), stride=(2, 2, 3), padding=(1, 2, 1), dilation=(1, 2, 1), groups=2),
            nn.Tanh(),
            nn.Flatten(),
        ),
        lambda: reals(4, 4, 6, 7),
    ),
    "conv3d, same": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 2, (1, 3, 2), padding="same", dilation=(1, 1, 2), bias=False), nn.Tanh(), nn.Flatten()
        ),
        lambda: reals(2, 3, 4, 3),
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
        lambda: reals(4),
    ),
    "batch norm of a sequence": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten()),
        lambda: reals(2, 5),
    ),
    "batch norm of images": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten()),
        lambda: reals(2, 4, 4),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten()),
        lambda: reals(2, 4, 4),
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)),
        lambda: reals(4),
    ),
    "layer norm of a sequence": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5, bias=False), nn.Tanh(), Mean()),
        lambda: reals(3, 4),
    ),
    "layer norm over two dimensions": (
        lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Tanh(), nn.Flatten()),
        lambda: reals(2, 3, 4),
    ),
    "rms norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.RMSNorm(5), nn.Tanh(), nn.Linear(5, 3)),
        lambda: reals(4),
    ),
    "rms norm of a sequence": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.RMSNorm(5, eps=0.1), nn.Tanh(), Mean()),
        lambda: reals(3, 4),
    ),
    "control flow that depends on the data": (Branching, lambda: reals(4)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(4, 3), nn.Tanh(), Mean()),
        lambda: tokens(7, 4),
    ),
    "embedding with padding": (
        lambda: nn.Sequential(nn.Embedding(5, 4, padding_idx=2), nn.Linear(4, 4), nn.Tanh(), Mean()),
        lambda: tokens(6, 5),
    ),
    "module called twice": (Twice, lambda: reals(4)),
    "convolution called twice": (TwiceConvolution, lambda: reals(2, 4, 4)),
    "tied parameter": (Tied, lambda: tokens(5, 6)),
    "tied functionally": (TiedFunctionally, lambda: tokens(5, 6)),
    "own parameters": (Own, lambda: reals(5)),
    "attention": (Attention, lambda: reals(3, 4)),
    "lstm": (Recurrent, lambda: reals(3, 4)),
    "in-place relu": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3), nn.ReLU(inplace=True)),
        lambda: reals(4),
    ),
    "sequence first, of length 2": (SequenceFirst, lambda: reals(2, 4)),
    "sequence first, of length 3": (SequenceFirst, lambda: reals(3, 4)),
    "batch and sequence flattened": (Flattened, lambda: reals(3, 4)),
    "called by keyword": (ByKeyword, lambda: reals(4)),
    "weight used elsewhere": (Reparametrised, lambda: reals(4)),
    "one module under two names": (UnderTwoNames, lambda: reals(4)),
    "own parameter held twice": (TiedOwn, lambda: reals(4)),
    "weight norm": (weight_normed, lambda: reals(4)),
}


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_a_backward_pass_a_sample(case: str, power: int) -> None:
    build, batches = CASES[case]
    found = check(made(build), batches(), power)
    assert all(float(each.abs().max()) > 0 for each in found.values())


def test_row_of_padding_weighs_nothing() -> None:
    found = check(made(CASES["embedding with padding"][0]), tokens(6, 5), 2)
    assert not found["0.weight"][2].any()


@pytest.mark.parametrize("power", [1, 2])
def test_unused_parameters_weigh_zero(power: int) -> None:
    found = check(made(Unused), reals(4), power)
    assert not any(found[name].any() for name in ("idle.weight", "idle.bias", "alone"))
    assert found["alone"].shape == (2,)


def test_frozen_parameters_are_absent() -> None:
    model = made(CASES["batch norm"][0])
    model[0].requires_grad_(False)
    model[1].bias.requires_grad_(False)
    assert check(model, reals(4), 2).keys() == {"1.weight", "3.weight", "3.bias"}


def test_dead_in_the_first_samples_and_alive_later() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.zero_()
    inputs = torch.rand(6, 3, dtype=torch.float64)
    inputs[:2] *= -1  # no unit answers to the samples on which the rules are checked
    check(model, [(inputs, torch.zeros(6, dtype=torch.int64))], 2)


@pytest.mark.parametrize("power", [1, 2])
def test_a_layer_that_stops_seeing_the_batch_first_is_noticed(power: int) -> None:
    torch.manual_seed(2)
    lengths = [(torch.randn(n, length, 4).double(), torch.randint(3, (n,))) for n, length in ((4, 1), (5, 3), (3, 1))]
    check(made(Flattened), lengths, power)


@pytest.mark.parametrize("power", [1, 2])
def test_a_first_batch_of_one_sample_proves_nothing(power: int) -> None:
    torch.manual_seed(2)
    check(made(SequenceFirst), [(torch.randn(n, 1, 4).double(), torch.randint(3, (n,))) for n in (1, 5)], power)


def test_nothing_to_learn_gives_nothing() -> None:
    model = nn.Linear(4, 3).double().requires_grad_(False)
    assert per_sample_moments(model, model, reals(4), directions) == {}


def test_another_power_is_refused() -> None:
    model = nn.Linear(4, 3).double()
    with pytest.raises(InputError, match="power is 1 or 2, not 3"):
        per_sample_moments(model, model, reals(4), directions, power=3)


def test_cotangents_are_asked_for_once_a_batch() -> None:
    asked = []

    def counting(outputs: Tensor, targets: Tensor) -> list[Tensor]:
        asked.append(len(outputs))
        return directions(outputs, targets)

    model = made(Own)  # by rules and by the fallback: both have to see the same drawn labels
    per_sample_moments(model, model, reals(5), counting)
    assert asked == list(BATCHES)


def test_only_what_no_rule_covers_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fallen: set[str] = set()
    monkeypatch.setattr("lifelong.curvature.fallback.add_moments", lambda m, f, names, *rest: fallen.update(names))
    model = made(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), Gain(3), nn.Flatten(), nn.Linear(12, 3)))
    per_sample_moments(model, model, [(each, labels) for each, labels in reals(2, 4, 4) if len(each) > 1], directions)
    assert fallen == {"1.gain"}


def test_convolutions_are_chunked_by_what_they_unfold() -> None:
    layer, g = nn.Conv2d(3, 64, 7, stride=2, padding=3), torch.zeros(1).expand(256, 64, 112, 112)
    assert rules.chunk(layer, g) * 3 * 49 * 112 * 112 <= 1 << 22


def test_chunked_convolutions_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifelong.curvature.rules._NUMBERS", 1000)
    check(made(CASES["conv2d, stride and padding"][0]), reals(2, 6, 7), 2)


def test_autocast_agrees_with_full_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def mixed(inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(inputs)

    batches = [(torch.randn(64, 4), torch.randint(3, (64,)))]
    exact = per_sample_moments(model, model, batches, _ones)
    assert_same(per_sample_moments(model, mixed, batches, _ones), exact, 0.03)


def test_chunks_and_batches_do_not_matter() -> None:
    model = made(Own).eval()
    (inputs, targets) = (torch.randn(40, 5, dtype=torch.float64), torch.randint(3, (40,)))
    whole = per_sample_moments(model, model, [(inputs, targets)], directions)
    parts = per_sample_moments(model, model, zip(inputs.split(7), targets.split(7), strict=True), directions)
    assert_same(parts, whole, 1e-12)
    assert_same(whole, loop_moments(model, model, [(inputs, targets)], directions, 2))


def test_large_linear_sequences_and_shared_layers_are_chunked_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifelong.curvature.rules._NUMBERS", 40)
    check(made(CASES["linear, one sequence dimension"][0]), reals(6, 5), 2)


def test_sums_of_low_precision_are_kept_in_float32() -> None:
    model = nn.Linear(2, 1, bias=False).bfloat16()
    inputs = torch.ones(1000, 2, dtype=torch.bfloat16)
    targets = torch.zeros(1000, dtype=torch.int64)
    found = per_sample_moments(model, model, [(inputs[n : n + 1], targets) for n in range(1000)], _ones)
    assert found["weight"].dtype == torch.float32
    assert found["weight"].tolist() == [[1000.0, 1000.0]]


def _ones(outputs: Tensor, targets: Tensor) -> list[Tensor]:
    return [torch.ones_like(outputs)]


def test_leaves_the_model_as_it_was() -> None:
    model = made(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), Own4(), nn.Linear(4, 3)))
    model.train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[4].weight.grad = torch.full_like(model[4].weight, 7.0)
    before = _surface(model)
    per_sample_moments(model, model, reals(4), directions)
    _assert_same_surface(model, before)


def test_leaves_the_model_as_it_was_after_an_exception() -> None:
    model = made(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Own4(), Failing(), nn.Linear(4, 3)))
    model.train()
    model[1].eval()
    model[4].weight.grad = torch.full_like(model[4].weight, 7.0)
    before = _surface(model)
    for after in range(4):
        model[3].left = after
        with pytest.raises(ArithmeticError, match="on purpose"):
            per_sample_moments(model, model, reals(4), directions)
        _assert_same_surface(model, before)


class Own4(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(4))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.gain


class Failing(nn.Module):
    """Passes `left` batches on, and then raises."""

    left = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.left == 0:
            raise ArithmeticError("on purpose")
        self.left -= 1
        return inputs


def _surface(model: nn.Module) -> dict[str, object]:
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "live": [parameter.requires_grad for parameter in model.parameters()],
        "parameters": [id(parameter) for parameter in model.parameters()],
        "gradients": [None if each.grad is None else each.grad.clone() for each in model.parameters()],
        "values": copy.deepcopy(model.state_dict()),
        "inference": torch.is_grad_enabled(),
    }


def _assert_same_surface(model: nn.Module, before: dict[str, object]) -> None:
    after = _surface(model)
    for key in ("modes", "hooks", "live", "parameters", "inference"):
        assert after[key] == before[key], key
    for key in ("gradients", "values"):
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)


@st.composite
def architectures(draw: st.DrawFn) -> tuple[list[tuple[object, ...]], int, int]:
    channels, size = draw(st.integers(1, 4)), draw(st.integers(3, 6))
    layers = draw(
        st.lists(
            st.sampled_from(["conv", "norm", "group", "layer", "own", "linear", "twice", "tied", "relu"]), max_size=5
        )
    )
    plan: list[tuple[object, ...]] = []
    for kind in layers:
        if kind == "conv":
            sizes = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 2)), draw(st.integers(1, 2))
            mode = draw(st.sampled_from(["zeros", "replicate"]))
            plan.append((kind, *sizes, draw(st.booleans()), draw(st.booleans()), mode))
        elif kind == "linear":
            plan.append((kind, draw(st.integers(1, 4)), draw(st.booleans())))
        else:
            plan.append((kind,))
    return plan, channels, size


class Gain(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.gain


def _planned(plan: list[tuple[object, ...]], channels: int, size: int) -> nn.Module:
    layers: list[nn.Module] = []
    shape = (channels, size, size)
    for kind, *options in plan:
        if kind == "conv":
            kernel, stride, padding, dilation, grouped, bias, mode = options
            if dilation * (kernel - 1) >= min(shape[1:]):
                kernel = 1
            groups = 2 if grouped and shape[0] % 2 == 0 else 1
            layers += [
                nn.Conv2d(shape[0], 2, kernel, stride, padding, dilation, groups, bias, padding_mode=mode),
                nn.Tanh(),
            ]
        elif kind == "linear":
            width, bias = options
            layers += [nn.Linear(shape[2], width, bias=bias), nn.Tanh()]
        elif kind == "twice":
            shared = nn.Conv2d(shape[0], shape[0], 3, padding=1)
            layers += [shared, nn.Tanh(), shared, nn.Tanh()]
        elif kind == "tied":
            first, second = nn.Linear(shape[2], shape[2]), nn.Linear(shape[2], shape[2])
            second.weight = first.weight
            layers += [first, nn.Tanh(), second, nn.Tanh()]
        else:
            layers.append(
                {
                    "norm": lambda s: nn.BatchNorm2d(s[0]),
                    "group": lambda s: nn.GroupNorm(1, s[0]),
                    "layer": lambda s: nn.LayerNorm(s[1:]),
                    "own": lambda s: Gain(s[0]),
                    # Overwriting what tanh or another relu needs for its own gradient is refused by autograd itself.
                    "relu": lambda s: nn.LeakyReLU(
                        inplace=bool(layers) and not isinstance(layers[-1], nn.Tanh | nn.LeakyReLU)
                    ),
                }[kind](shape)
            )
        shape = tuple(nn.Sequential(*layers).eval()(torch.zeros(1, channels, size, size)).shape[1:])
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 3))


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(architectures(), st.sampled_from([1, 2]), st.integers(0, 1000))
def test_random_architectures(chosen: tuple[list[tuple[object, ...]], int, int], power: int, seed: int) -> None:
    plan, channels, size = chosen
    model = made(lambda: _planned(plan, channels, size), seed)
    check(model, reals(channels, size, size)[:2], power)
