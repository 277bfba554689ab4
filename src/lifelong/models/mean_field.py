"""Weights that are independent Gaussians: their noise, their divergence, and how they are made to forget.

A posterior is two trees of the same names, means and log-variances `v`; the deviation is `exp(v / 2)`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lifelong import tree
from lifelong.models.network import Network
from lifelong.tree import Params

# Noise of the shape, dtype and device of a tensor, drawn from N(0, 1).
Noise = Callable[[Tensor], Tensor]

# The square root has no gradient at 0, where all inputs of a unit are 0.
_LEAST_VARIANCE = 1e-16


def divergence(mean: Params, logvar: Params, prior_mean: Params, prior_logvar: Params) -> Tensor:
    """Return `KL(q || p)`, 0-d, of the Gaussians `q` (`mean`, `logvar`) and `p` (`prior_mean`, `prior_logvar`).

    `1/2 sum_i [u_i - v_i + (exp(v_i) + (m_i - n_i)^2) / exp(u_i) - 1]`, with v and u the log-variances of q and p, m
    and n their means.
    """
    terms = []
    for name, v in logvar.items():
        apart, u = (mean[name] - prior_mean[name]).square(), prior_logvar[name]
        terms.append((u - v + (v.exp() + apart) * (-u).exp() - 1).sum() / 2)
    return torch.stack(terms).sum()


def tempered(mean: Params, logvar: Params, variance: float, share: float) -> tuple[Params, Params]:
    """Return mean and log-variance of `q^(1 - share) p0^share`, normalised, with `p0 = N(0, variance)`.

    The precision is `(1 - share) / exp(v) + share / variance`, the mean `(1 - share) m / exp(v)` over it (Kurle et al.
    2020, ICLR).
    """
    weight = tree.map(lambda v: (1 - share) * (-v).exp(), logvar)
    precision = tree.map(lambda w: w + share / variance, weight)
    return tree.map(lambda m, w, p: m * w / p, mean, weight, precision), tree.map(lambda p: -p.log(), precision)


def diffused(mean: Params, logvar: Params, variance: float, share: float) -> tuple[Params, Params]:
    """Return mean and log-variance after an Ornstein-Uhlenbeck process that rests at `N(0, variance)`.

    With `a = 1 - share` the weights become `a w + sqrt(1 - a^2) e`, `e ~ N(0, variance)`: mean `a m`, variance
    `a^2 exp(v) + (1 - a^2) variance` (Kurle et al. 2020, ICLR).
    """
    kept = 1 - share
    return tree.scale(mean, kept), tree.map(lambda v: (kept**2 * v.exp() + (1 - kept**2) * variance).log(), logvar)


def answer(
    network: Network,
    mean: Params,
    logvar: Params,
    inputs: Tensor,
    task: int | Tensor,
    *,
    noise: Noise = torch.randn_like,
    local: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return features `[batch, width]` and logits `[batch, outputs]` of `network` with weights drawn once.

    Args:
        network: its parameters of these names are replaced; others, and its buffers, are its own.
        mean, logvar: of the posterior.
        inputs: `[batch, ...]`.
        task: index, or `[batch]` int64.
        noise: draws the random numbers.
        local: linear and convolution layers draw the sums of each sample, not weights for the whole batch: the same
            distribution for a sample, at less variance of the gradient (Kingma et al. 2015, 1506.02557, eq. 6).
    """
    with contextlib.ExitStack() as hooks:
        inside: set[str] = set()
        for name, layer in network.named_modules() if local else ():
            if type(layer) not in (nn.Linear, nn.Conv2d) or f"{name}.weight" not in mean:
                continue
            if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
                continue
            variances = {each: logvar[f"{name}.{each}"] for each in ("weight", "bias") if f"{name}.{each}" in mean}
            hook = functools.partial(_add_noise, variances, noise)
            hooks.callback(layer.register_forward_hook(hook).remove)
            inside |= {f"{name}.{each}" for each in variances}
        weights = {
            name: each if name in inside else each + (logvar[name] / 2).exp() * noise(each)
            for name, each in mean.items()
        }
        return answer_with(network, weights, inputs, task)


def answer_with(network: Network, weights: Params, inputs: Tensor, task: int | Tensor) -> tuple[Tensor, Tensor]:
    """Return features `[batch, width]` and logits `[batch, outputs]` of `network` with these `weights` in it."""
    features: Tensor = functional_call(network.trunk, tree.under("trunk.", weights), (inputs,))
    logits: Tensor = functional_call(network.head, tree.under("head.", weights), (features, task))
    return features, logits


def _add_noise(
    logvar: Params, noise: Noise, layer: nn.Linear | nn.Conv2d, inputs: tuple[Tensor], sums: Tensor
) -> Tensor:
    squares, weight = inputs[0].square(), logvar["weight"].exp()
    bias = logvar["bias"].exp() if "bias" in logvar else None
    if isinstance(layer, nn.Linear):
        variance = F.linear(squares, weight, bias)
    else:
        variance = F.conv2d(squares, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return sums + variance.clamp_min(_LEAST_VARIANCE).sqrt() * noise(sums)
