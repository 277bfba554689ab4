"""Kernels of samples against explicit Jacobians in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from reference.curvature import loop_kernels
from reference.networks import Tied, Twice
from torch import Tensor, nn

from lifelong.curvature import kernel, kernels


class Own(nn.Module):
    """A parameter that no layer with a rule holds, beside layers that have one, and one that is idle."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(4))
        self.linear = nn.Linear(4, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear((inputs * self.gain).sin())


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 5, bias=False), nn.Linear(5, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 3)
    )


def sequence() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3))


def made(build: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = build().double()
    return model, {name: torch.rand_like(each).detach() + 0.1 for name, each in model.named_parameters()}


CASES: list[tuple[Callable[[], nn.Module], tuple[int, ...] | None]] = [
    (perceptron, (4,)),
    (convolutional, (1, 4, 4)),
    (sequence, (2, 4)),
    (Twice, (4,)),
    (Own, (4,)),
    (Tied, None),
]


@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize(("build", "shape"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_kernels_are_those_of_explicit_jacobians(
    build: Callable[[], nn.Module], shape: tuple[int, ...] | None, samples: int
) -> None:
    model, covariance = made(build)
    torch.manual_seed(1)
    inputs = torch.randint(6, (samples, 3)) if shape is None else torch.randn(samples, *shape, dtype=torch.float64)

    def forward(some: Tensor) -> Tensor:
        return model(some).softmax(1)

    modes = [module.training for module in model.modules()]
    found = kernels(model, forward, inputs, covariance)
    assert [module.training for module in model.modules()] == modes
    expected = loop_kernels(model.eval(), forward, inputs, covariance)
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_units_may_be_treated_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, covariance = made(perceptron)
    inputs = torch.randn(5, 4, dtype=torch.float64)
    whole = kernels(model, model, inputs, covariance)
    monkeypatch.setattr(kernel, "_NUMBERS", 60)
    torch.testing.assert_close(kernels(model, model, inputs, covariance), whole, rtol=1e-12, atol=0)


def test_frozen_parameters_have_no_share() -> None:
    model, covariance = made(perceptron)
    model[0].requires_grad_(False)
    inputs = torch.randn(5, 4, dtype=torch.float64)
    left = {name: each for name, each in covariance.items() if not name.startswith("0.")}
    found = kernels(model, model, inputs, left)
    torch.testing.assert_close(found, loop_kernels(model.eval(), model, inputs, left), rtol=1e-9, atol=0)
