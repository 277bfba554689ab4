"""Fisher, MAS and SCP against autograd on their definitions."""

from __future__ import annotations

import pytest
import torch
from reference.curvature import assert_same, mean_moments
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong import curvature
from lifelong.errors import InputError

CLASSES = 4
SAMPLES = 11


class Masked(nn.Module):
    """A classifier one of whose classes is not in play."""

    def __init__(self, inner: nn.Module, closed: int) -> None:
        super().__init__()
        self.inner = inner
        self.closed = closed

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.arange(CLASSES) == self.closed
        return self.inner(inputs).masked_fill(hidden, -torch.inf)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(SAMPLES, 3, dtype=torch.float64), torch.randint(CLASSES, (SAMPLES,))


def batches(data: tuple[Tensor, Tensor], size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


def enumerated(model: nn.Module, inputs: Tensor, classes: list[int]) -> dict[str, Tensor]:
    """`mean_x sum_k p_k (d log p_k / d theta)^2`, class by class, by autograd of the log-probability."""
    live = dict(model.named_parameters())
    total = {name: torch.zeros_like(each) for name, each in live.items()}
    for sample in inputs:
        logits = model(sample.unsqueeze(0))[0, classes]
        for k in range(len(classes)):
            log_p = logits[k] - logits.exp().sum().log()
            found = torch.autograd.grad(log_p, list(live.values()), retain_graph=True)
            for name, gradient in zip(live, found, strict=True):
                total[name] += log_p.exp().detach() * gradient.square() / len(inputs)
    return total


def test_true_fisher_enumerates_the_classes(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    found = curvature.fisher(model, model, batches(data, 4), kind="true")
    assert_same(found, enumerated(model, data[0], list(range(CLASSES))))


@pytest.mark.parametrize("kind", ["true", "sampled", "empirical"])
def test_masked_classes_give_no_nan(model: nn.Module, data: tuple[Tensor, Tensor], kind: str) -> None:
    closed, open_classes = 2, [0, 1, 3]
    masked = Masked(model, closed)
    inputs, targets = data[0], torch.where(data[1] == closed, 0, data[1])
    generator = torch.Generator().manual_seed(0)
    found = curvature.fisher(masked, masked, [(inputs, targets)], kind=kind, generator=generator)
    assert all(each.isfinite().all() for each in found.values())
    assert not found["inner.2.weight"][closed].any()
    assert not found["inner.2.bias"][closed].any()
    if kind == "true":
        assert_same(found, enumerated(masked, inputs, open_classes))
    if kind == "empirical":
        assert_same(found, mean_moments(masked, inputs, targets, _log_likelihood, 2))


def test_masked_classes_give_no_nan_in_mas_and_scp(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    masked = Masked(model, 2)
    for found in (
        curvature.mas(masked, masked, batches(data, 4)),
        curvature.scp(masked, masked, batches(data, 4), samples=SAMPLES),
    ):
        assert all(each.isfinite().all() for each in found.values())
        assert not found["inner.2.weight"][2].any()
        assert found["inner.2.weight"][[0, 1, 3]].all()


def test_masked_classes_give_no_nan_by_fallback(data: tuple[Tensor, Tensor]) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(3, CLASSES, dtype=torch.float64))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs @ self.matrix

    masked = Masked(Own(), 2)
    found = curvature.fisher(masked, masked, [data], kind="true")
    assert_same(found, enumerated(masked, data[0], [0, 1, 3]))


def _log_likelihood(logits: Tensor, target: Tensor) -> Tensor:
    return logits.log_softmax(0)[target]


def test_empirical_fisher_takes_the_given_labels(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    found = curvature.fisher(model, model, batches(data, 4), kind="empirical")
    assert_same(found, mean_moments(model, *data, _log_likelihood, 2))


def test_sampled_fisher_approaches_the_true_one(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    true = curvature.fisher(model, model, [data], kind="true")
    repeats = 4000
    many = (data[0].repeat(repeats, 1), data[1].repeat(repeats))
    generator = torch.Generator().manual_seed(0)
    found = curvature.fisher(model, model, [many], kind="sampled", generator=generator)
    # 44,000 draws: a standard error of about a percent.
    assert_same(found, true, 0.05)
    empirical = curvature.fisher(model, model, [data], kind="empirical")
    with pytest.raises(AssertionError):
        assert_same(empirical, true, 0.05)


def test_sampled_fisher_follows_its_generator(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return curvature.fisher(model, model, batches(data, 4), kind="sampled", generator=generator)

    torch.testing.assert_close(drawn(0), drawn(0), rtol=0, atol=0)
    assert not torch.equal(drawn(0)["2.bias"], drawn(1)["2.bias"])


@pytest.mark.parametrize("kind", ["true", "empirical"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_fisher_does_not_depend_on_the_batch_size(
    model: nn.Module, data: tuple[Tensor, Tensor], kind: str, size: int
) -> None:
    whole = curvature.fisher(model, model, [data], kind=kind)
    assert_same(curvature.fisher(model, model, batches(data, size), kind=kind), whole, 1e-12)


@pytest.mark.parametrize("size", [1, 3, SAMPLES])
def test_batched_fisher_squares_the_means_of_batches(model: nn.Module, data: tuple[Tensor, Tensor], size: int) -> None:
    live = dict(model.named_parameters())
    expected = {name: torch.zeros_like(each) for name, each in live.items()}
    for inputs, targets in batches(data, size):
        gradients = torch.autograd.grad(F.cross_entropy(model(inputs), targets), list(live.values()))
        for name, gradient in zip(live, gradients, strict=True):
            expected[name] += gradient**2 * len(inputs) / SAMPLES
    found = curvature.fisher(model, model, batches(data, size), kind="batched")
    assert_same(found, expected)
    empirical = curvature.fisher(model, model, [data], kind="empirical")
    if size == 1:
        assert_same(found, empirical)
    else:
        assert sum(each.sum() for each in found.values()) < sum(each.sum() for each in empirical.values())


@pytest.mark.parametrize("size", [1, 4])
def test_mas_is_the_mean_of_absolute_gradients(model: nn.Module, data: tuple[Tensor, Tensor], size: int) -> None:
    found = curvature.mas(model, model, batches(data, size))
    assert_same(found, mean_moments(model, *data, lambda outputs, _: (outputs**2).sum(), 1))


@pytest.mark.parametrize("size", [2, SAMPLES])
def test_scp_is_the_mean_over_outputs_of_squared_gradients_of_the_mean_answer(
    model: nn.Module, data: tuple[Tensor, Tensor], size: int
) -> None:
    assert_same(curvature.scp(model, model, batches(data, size), samples=SAMPLES), _exact_scp(model, data[0]))


def _exact_scp(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    live = dict(model.named_parameters())
    expected = {name: torch.zeros_like(each) for name, each in live.items()}
    mean = model(inputs).mean(0)
    for each in mean:
        gradients = torch.autograd.grad(each, list(live.values()), retain_graph=True)
        for name, gradient in zip(live, gradients, strict=True):
            expected[name] += gradient**2 / len(mean)
    return expected


def test_scp_in_several_passes_is_the_same(
    model: nn.Module, data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifelong.curvature.importance._BYTES", 1)
    assert_same(curvature.scp(model, model, batches(data, 4), samples=SAMPLES), _exact_scp(model, data[0]))


def test_sampled_scp_approaches_the_exact_one(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    exact = _exact_scp(model, data[0])
    mean = {name: torch.zeros_like(each) for name, each in exact.items()}
    generator = torch.Generator().manual_seed(0)
    repeats = 1500
    for _ in range(repeats):
        drawn = curvature.scp(model, model, [data], samples=SAMPLES, slices=3, generator=generator)
        for name, each in drawn.items():
            mean[name] += each / repeats
    assert_same(mean, exact, 0.05)


def test_as_many_slices_as_outputs_are_exact(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    found = curvature.scp(model, model, [data], samples=SAMPLES, slices=CLASSES)
    assert_same(found, _exact_scp(model, data[0]))


@pytest.mark.parametrize("measure", ["fisher", "batched", "mas", "scp"])
def test_leaves_the_model_as_it_was(measure: str, data: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, CLASSES)).double()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[3].bias.grad = torch.full_like(model[3].bias, 7.0)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    measures = {
        "fisher": lambda forward: curvature.fisher(model, forward, [data]),
        "batched": lambda forward: curvature.fisher(model, forward, [data], kind="batched"),
        "mas": lambda forward: curvature.mas(model, forward, [data]),
        "scp": lambda forward: curvature.scp(model, forward, [data], samples=SAMPLES),
    }

    def failing(inputs: Tensor) -> Tensor:
        raise ArithmeticError("on purpose")

    found = measures[measure](model)
    assert found.keys() == {"0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}
    assert not any(each.requires_grad for each in found.values())
    with pytest.raises(ArithmeticError, match="on purpose"):
        measures[measure](failing)
    assert [module.training for module in model] == [True, False, True, True]
    assert model.training
    assert not model[0].weight.requires_grad
    assert [name for name, each in model.named_parameters() if each.grad is not None] == ["3.bias"]
    assert model[3].bias.grad.tolist() == [7.0] * CLASSES
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_wrong_arguments_are_named(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    inputs, targets = data
    with pytest.raises(InputError, match="unknown kind of Fisher 'empiric', did you mean 'empirical'"):
        curvature.fisher(model, model, [data], kind="empiric")
    for kind in ("empirical", "batched"):
        with pytest.raises(InputError, match="labels run from 4 to 4, but the network has 4 outputs"):
            curvature.fisher(model, model, [(inputs, torch.full_like(targets, 4))], kind=kind)
    with pytest.raises(InputError, match="samples is 12, but `batches` hold 11"):
        curvature.scp(model, model, [data], samples=12)
    with pytest.raises(InputError, match="slices is at least 1, or None for the exact expectation, not 0"):
        curvature.scp(model, model, [data], samples=SAMPLES, slices=0)


def test_no_samples_are_refused(model: nn.Module) -> None:
    for measure in (
        lambda: curvature.fisher(model, model, []),
        lambda: curvature.fisher(model, model, [], kind="batched"),
        lambda: curvature.mas(model, model, []),
        lambda: curvature.scp(model, model, [], samples=0),
    ):
        with pytest.raises(InputError, match="no samples to measure importance on"):
            measure()


def test_what_answers_without_the_trainable_parameters_gives_zeros(data: tuple[Tensor, Tensor]) -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, CLASSES), "idle": nn.Linear(3, 2)}).double()
    model["used"].requires_grad_(False)
    for found in (
        curvature.fisher(model, model["used"], [data]),
        curvature.fisher(model, model["used"], [data], kind="batched"),
        curvature.mas(model, model["used"], [data]),
        curvature.scp(model, model["used"], [data], samples=SAMPLES),
    ):
        assert found.keys() == {"idle.weight", "idle.bias"}
        assert not any(each.any() for each in found.values())


def test_results_have_the_dtype_of_the_parameters(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    model, batches = model.bfloat16(), [(data[0].bfloat16(), data[1])]
    for found in (
        curvature.fisher(model, model, batches),
        curvature.fisher(model, model, batches, kind="batched"),
        curvature.mas(model, model, batches),
        curvature.scp(model, model, batches, samples=SAMPLES),
    ):
        assert {each.dtype for each in found.values()} == {torch.bfloat16}
        assert all(each.isfinite().all() for each in found.values())
