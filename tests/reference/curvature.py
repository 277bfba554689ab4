"""Per-sample sums the slow and obvious way: one sample, one backward pass, one addition at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]
Scalar = Callable[[Tensor, Tensor], Tensor]


def directions(outputs: Tensor, targets: Tensor) -> list[Tensor]:
    """Two made-up cotangents for each sample, `[batch, outputs]`, that depend on its outputs and on its target."""
    return [outputs.cos() * (targets + 1).unsqueeze(1), outputs + 0.5]


def loop_moments(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    cotangents: Callable[[Tensor, Tensor], Iterable[Tensor]],
    power: int,
) -> Params:
    """Return `sum_n sum_v |J_n^T v_n|^power` for a model in evaluation mode."""
    live = {name: each for name, each in model.named_parameters() if each.requires_grad}
    totals = {name: torch.zeros_like(each) for name, each in live.items()}
    for inputs, targets in batches:
        for n in range(len(inputs)):
            outputs = forward(inputs[n : n + 1])
            for direction in cotangents(outputs.detach(), targets[n : n + 1]):
                scalar = (outputs * direction).sum()
                found = torch.autograd.grad(scalar, list(live.values()), retain_graph=True, allow_unused=True)
                for name, gradient in zip(live, found, strict=True):
                    if gradient is not None:
                        totals[name] += gradient.abs() ** power
    return totals


def mean_moments(model: nn.Module, inputs: Tensor, targets: Tensor, scalar: Scalar, power: int) -> Params:
    """Return the mean over samples of `|d scalar(outputs[n], targets[n]) / d theta|^power`."""
    live = {name: each for name, each in model.named_parameters() if each.requires_grad}
    totals = {name: torch.zeros_like(each) for name, each in live.items()}
    for n in range(len(inputs)):
        value = scalar(model(inputs[n : n + 1])[0], targets[n])
        for name, gradient in zip(live, torch.autograd.grad(value, list(live.values())), strict=True):
            totals[name] += gradient.abs() ** power / len(inputs)
    return totals


def assert_same(found: Params, expected: Params, tolerance: float = 1e-9) -> None:
    """Assert that two trees agree to `tolerance` of the greatest number of each leaf.

    A leaf whose true values are 0 may hold rounding noise of the size that the other leaves' numbers cause.
    """
    assert found.keys() == expected.keys()
    noise = 1e-13 * max(float(each.abs().max()) for each in expected.values())
    for name, each in expected.items():
        assert found[name].shape == each.shape, name
        worst = float((found[name] - each).abs().max())
        assert worst <= tolerance * float(each.abs().max()) + noise, f"{name}: {worst}"


def loop_jacobian(model: nn.Module, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return the Jacobian `[outputs, samples, parameters]` of a model in evaluation mode, parameters side by side."""
    live = [each for each in model.parameters() if each.requires_grad]
    rows = []
    for n in range(len(inputs)):
        outputs = forward(inputs[n : n + 1])[0]
        for output in outputs:
            found = torch.autograd.grad(output, live, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(p) if g is None else g for p, g in zip(live, found, strict=True)]
            rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows).unflatten(0, (len(inputs), -1)).transpose(0, 1)


def loop_kernels(model: nn.Module, forward: Callable[[Tensor], Tensor], inputs: Tensor, covariance: Params) -> Tensor:
    """Return `J_k diag(covariance) J_k^T` of each output k, `[outputs, samples, samples]`."""
    variance = torch.cat([covariance[name].flatten() for name, p in model.named_parameters() if p.requires_grad])
    return torch.stack([each @ torch.diag(variance) @ each.T for each in loop_jacobian(model, forward, inputs)])
