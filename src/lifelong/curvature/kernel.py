"""Kernels of samples: how a Gaussian over the weights moves the network's answers to them together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lifelong import tree
from lifelong.curvature import fallback, rules
from lifelong.curvature.fallback import Forward, Use
from lifelong.curvature.per_sample import Call, evaluating, output_gradients, recorded, still_batched, trusted
from lifelong.tree import Params

# Numbers held at a time by the kernels of single units: 16 MiB in float32.
_NUMBERS = 1 << 22


def kernels(model: nn.Module, forward: Forward, inputs: Tensor, covariance: Params) -> Tensor:
    """Return `K_k = J_k diag(covariance) J_k^T` of each output k, `[outputs, samples, samples]`.

    `J_k` `[samples, parameters]` is the Jacobian of the k-th output. For a linear layer with inputs `a` and output
    gradients `g` it is never formed: `K_k[i, j] = sum_o g_io g_jo (sum_p a_ip S_op a_jp)`, whose inner sum is the same
    for all k. Other layers with a rule (`rules.py`) give a `J_k` of their own, one output at a time, and all other
    parameters theirs by chunked `vmap(grad)` (`fallback.py`); then a whole `J_k` of one layer lies in memory.

    Args:
        model: in evaluation mode meanwhile, and back; nothing else of it changes.
        forward: inputs `[samples, ...]` to outputs `[samples, outputs]`, by calling `model`.
        inputs: the samples.
        covariance: the variance of each trainable parameter, of their names and shapes.

    Returns:
        in at least float32; positive semi-definite but for rounding.
    """
    live = tree.parameters(model)
    with evaluating(model), torch.enable_grad():
        # With one sample alone, a layer that sees another order of dimensions cannot be told.
        ruled = trusted(model, forward, live, inputs[:2]) if len(inputs) > 1 else {}
        with recorded({use.layer for uses in ruled.values() for use in uses}) as calls:
            outputs = forward(inputs)
        ruled = still_batched(ruled, calls, len(inputs))
        identity = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        directions = [row.expand_as(outputs) for row in identity]
        gradients = [output_gradients(outputs, direction, calls) for direction in directions]
        total = torch.zeros(len(identity), len(inputs), len(inputs), dtype=tree.wide(outputs), device=outputs.device)
        with torch.no_grad():
            for name, uses in ruled.items():
                _add_ruled(total, uses, calls, gradients, covariance[name])
        rest = [name for name in live if name not in ruled]
        if rest:
            for k, direction in enumerate(directions):
                chunks = list(fallback.gradients(model, forward, rest, inputs, direction))
                for name in rest:
                    total[k] += _product(torch.cat([chunk[name] for chunk in chunks]), covariance[name])
    return total


def _add_ruled(
    total: Tensor, uses: list[Use], calls: list[Call], gradients: list[list[Tensor | None]], variance: Tensor
) -> None:
    """Add the kernels of one parameter, `gradients[k]` being those of the k-th output with respect to `calls`."""
    met = list(_met(uses, calls, gradients))
    if len(met) == 1:
        use, a, g = met[0]
        if isinstance(use.layer, nn.Linear) and a.ndim == 2:
            # A bias is the weight of an input that is always 1.
            a = a if use.name == "weight" else torch.ones_like(a[:, :1])
            total += _of_linear(a.to(total.dtype), g.to(total.dtype), variance.reshape(len(variance), -1))
            return
    if met:
        for k in range(len(total)):
            # A parameter that is used more than once has the sum of the gradients of its uses.
            parts = [rules.gradients(use.layer, a, g[k])[use.name] for use, a, g in met]
            total[k] += _product(torch.stack(parts).sum(0) if len(parts) > 1 else parts[0], variance)


def _met(
    uses: list[Use], calls: list[Call], gradients: list[list[Tensor | None]]
) -> Iterator[tuple[Use, Tensor, Tensor]]:
    """Yield each call of a layer that uses the parameter: its input, and its output's gradients `[outputs, ...]`."""
    for use in uses:
        for index, call in enumerate(calls):
            each = [row[index] for row in gradients]
            present = [g for g in each if g is not None]
            if call.layer is use.layer and present:
                yield use, call.inputs, torch.stack([torch.zeros_like(present[0]) if g is None else g for g in each])


def _of_linear(a: Tensor, g: Tensor, variance: Tensor) -> Tensor:
    """Return the kernels of the gradients `g_k a^T`: `a` `[n, in]`, `g` `[outputs, n, out]`, `variance` `[out, in]`."""
    total = g.new_zeros(len(g), len(a), len(a))
    size = max(1, _NUMBERS // (len(a) * max(a.shape)))
    for some, along in zip(variance.to(a.dtype).split(size), g.split(size, dim=2), strict=True):
        units = (a * some.unsqueeze(1)) @ a.T
        for k, each in enumerate(along.transpose(1, 2)):
            total[k] += (units * each.unsqueeze(2) * each.unsqueeze(1)).sum(0)
    return total


def _product(jacobian: Tensor, variance: Tensor) -> Tensor:
    rows = jacobian.flatten(1)
    return (rows * variance.to(rows.dtype).flatten()) @ rows.T
