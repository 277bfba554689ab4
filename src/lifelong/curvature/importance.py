"""How much each parameter matters to what the network answers: Fisher, MAS, SCP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong import losses, tree
from lifelong.curvature.fallback import Forward
from lifelong.curvature.per_sample import Cotangents, evaluating, per_sample_moments, wide_zeros
from lifelong.errors import InputError, unknown
from lifelong.tree import Params

Batches = Iterable[tuple[Tensor, Tensor]]
FisherKind = Literal["true", "sampled", "empirical", "batched"]

# Gradients that are held at once while the mean answer's are summed over the data.
_BYTES = 1 << 26


def fisher(
    model: nn.Module,
    forward: Forward,
    batches: Batches,
    *,
    kind: FisherKind = "true",
    generator: torch.Generator | None = None,
) -> Params:
    """Return the diagonal of the Fisher information, `F_i = E_x E_{y ~ p(.|x)} [(d log p(y|x) / d theta_i)^2]`.

    Kirkpatrick et al. 2017, 1612.00796, after eq. 2; per sample, so it does not depend on the batch size. Where targets
    are numbers, `p(.|x)` is the Gaussian of deviation 1 around the one output.

    Args:
        model: evaluated with running statistics and without dropout; left as it was.
        forward: inputs to logits `[batch, classes]`; logits of -inf stand for classes that are not in play.
        batches: `(inputs, targets)` of one task, targets as `lifelong.losses.task_loss` takes them.
        kind: `true` takes the expectation over all classes, `sampled` one label a sample drawn from the model,
            `empirical` the given one. `batched` squares the gradient of each batch's mean loss with the given labels
            (a different number that shrinks with the batch size; some libraries use it).
        generator: of the sampled labels, on the CPU.

    Returns:
        a tree of means over samples, of the trainable parameters' names, shapes and dtypes.

    Raises:
        InputError: an unknown kind, no samples, or a label outside the outputs where labels are used.
    """
    if kind not in get_args(FisherKind):
        raise unknown("kind of Fisher", kind, get_args(FisherKind))
    if kind == "batched":
        return _batched(model, forward, batches)

    def cotangents(logits: Tensor, targets: Tensor) -> Iterator[Tensor]:
        if losses.are_numbers(logits, targets):
            yield _of_number(kind, logits, targets, generator)
            return
        probability = logits.softmax(1)
        if kind == "true":
            # p_k (d log p_k)^2 = (d of sqrt(p_k) * (e_k - p))^2, with the class's probability held fixed.
            identity = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
            for row, share in zip(identity, probability.sqrt().unbind(1), strict=True):
                yield share.unsqueeze(1) * (row - probability) * torch.isfinite(logits)
            return
        if kind == "empirical":
            labels = _labels(targets, logits.shape[1])
        else:
            labels = torch.multinomial(probability.cpu(), 1, generator=generator).squeeze(1).to(logits.device)
        yield F.one_hot(labels, logits.shape[1]).to(logits.dtype) - probability

    return _mean(model, forward, batches, cotangents, power=2)


def _of_number(kind: FisherKind, outputs: Tensor, targets: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return `d log p / d f = y - f` `[batch, 1]` for the Gaussian's y; of its square 1 is the expectation."""
    if kind == "true":
        return torch.ones_like(outputs)
    if kind == "empirical":
        return targets.unsqueeze(1).to(outputs) - outputs.detach()
    return torch.randn(outputs.shape, generator=generator).to(outputs)


def mas(model: nn.Module, forward: Forward, batches: Batches) -> Params:
    """Return `Omega_i = mean_x |d ||f(x)||^2 / d theta_i|`, per sample and without labels.

    Aljundi et al. 2018, 1711.09601, eq. 2 with the squared norm of section 3.2. Per sample, as the paper has it and
    its code, which takes batch means, has not. Outputs of -inf are left out of the norm.

    Args:
        model: as for `fisher`.
        forward: inputs to outputs `[batch, outputs]`.
        batches: `(inputs, targets)`; the targets are not looked at.

    Returns:
        as `fisher`.

    Raises:
        InputError: no samples.
    """

    def cotangents(outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        yield torch.where(torch.isfinite(outputs), 2 * outputs, 0.0)

    return _mean(model, forward, batches, cotangents, power=1)


def scp(
    model: nn.Module,
    forward: Forward,
    batches: Batches,
    *,
    samples: int,
    slices: int | None = None,
    generator: torch.Generator | None = None,
) -> Params:
    """Return `Gamma = E_{xi on the unit sphere} [(d (xi . zbar) / d theta)^2]` with `zbar = mean_x f(x)`.

    Kolouri et al., ICLR 2020, eq. 9. With K outputs the expectation is exactly `1/K sum_k (d zbar_k / d theta)^2`.

    Args:
        batches: gone through several times where the outputs are many, so not an iterator.
        samples: how many samples `batches` hold.
        slices: directions to draw, one backward pass each; None, or at least K of them, takes the exact expectation.
        generator: of the directions, on the CPU. Other arguments as for `fisher`.

    Outputs of -inf count among the K, with a gradient of 0. The authors' code averages the projections before one
    backward pass, which is another number; here each direction has its own.

    Returns:
        as `fisher`.

    Raises:
        InputError: fewer than one slice, no samples, or another number of them than `samples`.
    """
    if slices is not None and slices < 1:
        raise InputError(f"slices is at least 1, or None for the exact expectation, not {slices}")
    live = tree.parameters(model)
    gamma = wide_zeros(live)
    first = next(iter(batches), None)
    if first is None:
        raise InputError("no samples to measure importance on: `batches` is empty")
    with evaluating(model), torch.no_grad():
        outputs = forward(first[0][:1]).shape[1]
    directions = _directions(outputs, slices, generator)
    at_once = max(1, _BYTES // max(1, 4 * tree.size(live)))
    with evaluating(model), torch.enable_grad():
        for some in directions.split(at_once):
            _add_squares(gamma, _gradients_of_mean(forward, live, batches, some, samples), 1 / len(directions))
    return _narrowed(gamma, live)


def _add_squares(totals: Params, gradients: list[Params], share: float) -> None:
    for gradient in gradients:
        for name, value in gradient.items():
            totals[name].addcmul_(value, value, value=share)


def _directions(outputs: int, slices: int | None, generator: torch.Generator | None) -> Tensor:
    """Directions `[count, outputs]` whose mean of squares is the expectation, or an estimate of it."""
    if slices is None or slices >= outputs:
        return torch.eye(outputs)
    # On the unit sphere E[xi xi^T] = I / K, as the mean over the K axes has.
    return F.normalize(torch.randn(slices, outputs, generator=generator), dim=1)


def _gradients_of_mean(
    forward: Forward, live: Params, batches: Batches, directions: Tensor, samples: int
) -> list[Params]:
    sums, count = [wide_zeros(live) for _ in directions], 0
    for inputs, _ in batches:
        count += len(inputs)
        outputs = forward(inputs)
        finite = torch.isfinite(outputs)
        for total, direction in zip(sums, directions.to(outputs), strict=True):
            along = torch.where(finite, direction / samples, 0.0)
            for name, gradient in _gradients(outputs, along, live).items():
                total[name] += gradient
    if count != samples:
        raise InputError(f"samples is {samples}, but `batches` hold {count} (an iterator is used up after one pass)")
    return sums


def _mean(model: nn.Module, forward: Forward, batches: Batches, cotangents: Cotangents, *, power: int) -> Params:
    """The mean over all samples of the moments of per-sample gradients."""
    count = 0

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal count
        for inputs, targets in batches:
            count += len(inputs)
            yield inputs, targets

    return _mean_of(
        per_sample_moments(model, forward, counted(), cotangents, power=power), count, tree.parameters(model)
    )


def _batched(model: nn.Module, forward: Forward, batches: Batches) -> Params:
    live = tree.parameters(model)
    totals, count = wide_zeros(live), 0
    with evaluating(model), torch.enable_grad():
        for inputs, targets in batches:
            logits = forward(inputs)
            numbers = losses.are_numbers(logits, targets)
            loss = losses.task_loss(logits, targets if numbers else _labels(targets, logits.shape[1]))
            count += len(inputs)
            for name, gradient in _gradients(loss, None, live).items():
                totals[name] += gradient.to(totals[name].dtype).square() * len(inputs)
    return _mean_of(totals, count, live)


def _gradients(outputs: Tensor, along: Tensor | None, live: Params) -> Params:
    """The gradients of the parameters that `outputs` depend on; the graph is kept."""
    if not outputs.requires_grad:
        return {}
    found = torch.autograd.grad(outputs, list(live.values()), along, retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(live, found, strict=True) if gradient is not None}


def _mean_of(totals: Params, count: int, live: Params) -> Params:
    if count == 0:
        raise InputError("no samples to measure importance on: `batches` is empty")
    torch._foreach_mul_(list(totals.values()), 1 / count)
    return _narrowed(totals, live)


def _narrowed(values: Params, live: Params) -> Params:
    return {name: value.to(live[name].dtype) for name, value in values.items()}


def _labels(targets: Tensor, classes: int) -> Tensor:
    """The targets as int64, which have to be indices of outputs."""
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise InputError(f"labels run from {low} to {high}, but the network has {classes} outputs")
    return targets.long()
