"""A variational autoencoder (Kingma & Welling 2014, 1312.6114) as functions of a tree of its parameters.

`p(z) = N(0, 1)`, `p(x|z) = prod_i Bernoulli(x_i; sigmoid(decoder(z))_i)`, `q(z|x) = N(mean(x), exp(logvar(x)))`, with
fully connected encoder and decoder. A tree and no module: what a method keeps of it is its state as it is, and a frozen
copy is a snapshot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong import tree
from lifelong.errors import InputError
from lifelong.tree import Params


def initial(pixels: int, hidden: Sequence[int], latent: int, *, seed: int, like: Tensor) -> Params:
    """Return fresh parameters, `encoder.<layer>.weight` and so on, that need a gradient.

    Args:
        pixels: numbers in one input.
        hidden: units of the encoder's hidden layers; the decoder has them in reverse.
        latent: numbers in one code.
        seed: of the weights.
        like: its dtype and device are theirs.

    Raises:
        InputError: a layer without units.
    """
    decoder = decoder_widths(pixels, hidden, latent)
    return fresh({"encoder": [pixels, *hidden, 2 * latent], "decoder": decoder}, seed=seed, like=like)


def decoder_widths(pixels: int, hidden: Sequence[int], latent: int) -> list[int]:
    """Return the widths of a decoder from the code to the inputs, its `hidden` layers in reverse.

    Raises:
        InputError: a layer without units.
    """
    if min(hidden, default=1) < 1:
        raise InputError(f"hidden = {tuple(hidden)} must be numbers of units, each at least 1")
    return [latent, *reversed(hidden), pixels]


def fresh(parts: Mapping[str, Sequence[int]], *, seed: int, like: Tensor) -> Params:
    """Return fresh parameters, `<part>.<layer>.weight` and so on, that need a gradient.

    Args:
        parts: widths of the layers of each part, from its inputs to its outputs.
        seed: of the weights.
        like: its dtype and device are theirs.
    """
    params: Params = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part, widths in parts.items():
            for index in range(len(widths) - 1):
                for name, each in nn.Linear(widths[index], widths[index + 1]).named_parameters():
                    params[f"{part}.{index}.{name}"] = each.detach().to(like).requires_grad_()
    return params


def encode(params: Params, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log-variance, each `[batch, latent]`, of the codes of `inputs` `[batch, ...]`."""
    mean, logvar = _layers(params, "encoder", inputs.flatten(1)).chunk(2, dim=1)
    return mean, logvar


def decode(params: Params, codes: Tensor, shift: Tensor | None = None, gates: Sequence[Tensor] = ()) -> Tensor:
    """Return the logits `[batch, pixels]` of the inputs that `codes` `[batch, latent]` stand for.

    Args:
        params: of the decoder.
        codes: `[batch, latent]`.
        shift: `[batch, width]`, added to the first layer's sums: what a decoder that knows more than the code knows.
        gates: `[batch, units]` for each hidden layer, from the code on, that multiply its activations; or none.
    """
    return _layers(params, "decoder", codes, shift, gates)


def draw(params: Params, codes: Tensor, shift: Tensor | None = None) -> Tensor:
    """Return the mean inputs `[batch, pixels]`, in 0..1, that `codes` drawn from N(0, 1) stand for."""
    return decode(params, codes, shift).sigmoid()


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return `KL(N(mean, exp(logvar)) || N(0, 1)) = 1/2 sum (mean^2 + exp(logvar) - 1 - logvar)`, `[batch]`."""
    return (mean.square() + logvar.exp() - 1 - logvar).sum(1) / 2


def log_normal(codes: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Return `log N(z; mean, exp(logvar))` without its constant `-n/2 log(2 pi)`, summed over the last dimension n."""
    return -(logvar + (codes - mean).square() * (-logvar).exp()).sum(-1) / 2


def log_bernoulli(logits: Tensor, inputs: Tensor) -> Tensor:
    """Return `sum_i x_i log p_i + (1 - x_i) log(1 - p_i)`, `[batch]`, for `p = sigmoid(logits)` `[batch, pixels]`.

    With logits l it is `x l - log(1 + exp(l))`, in this form half again as fast as torch's cross-entropy.
    """
    kind = tree.wide(logits)  # hundreds of terms are summed, too many for half precision
    wide = logits.to(kind)
    return (inputs.flatten(1).to(kind) * wide).sum(1) - F.softplus(wide).sum(1)


def bound(params: Params, inputs: Tensor, shift: Tensor | None = None) -> Tensor:
    """Return the evidence lower bound `log p(x|z) - KL(q(z|x) || p(z))`, `[batch]`, with one `z ~ q(z|x)` a sample."""
    mean, logvar = encode(params, inputs)
    codes = mean + (logvar / 2).exp() * torch.randn_like(mean)
    return log_bernoulli(decode(params, codes, shift), inputs) - divergence(mean, logvar)


def log_likelihood(params: Params, inputs: Tensor, noise: Tensor) -> Tensor:
    """Return `log 1/S sum_s p(x|z_s) p(z_s) / q(z_s|x)` with `z_s ~ q(z|x)`, `[batch]`.

    It rises with S from the evidence lower bound to `log p(x)` (Burda et al. 2016, 1509.00519, eq. 8).

    Args:
        params: of encoder and decoder.
        inputs: `[batch, ...]`.
        noise: `[S, batch, latent]`, drawn from N(0, 1).
    """
    mean, logvar = encode(params, inputs)
    weights = []
    for each in noise:
        codes = mean + (logvar / 2).exp() * each
        # Both Gaussians lack the same constant.
        ratio = (each.square() + logvar - codes.square()).sum(1) / 2
        weights.append(log_bernoulli(decode(params, codes), inputs) + ratio)
    return torch.stack(weights).logsumexp(0) - math.log(len(weights))


def check_inputs(inputs: Tensor, method: str) -> None:
    """Refuse `inputs` that are not what a Bernoulli decoder can make, in the name of `method`.

    Raises:
        InputError: whole numbers (tokens), or numbers outside 0..1.
    """
    if not inputs.is_floating_point():
        raise InputError(f"method {method} generates images in 0..1, and the inputs are whole numbers")
    low, high = float(inputs.min()), float(inputs.max())
    if low < 0 or high > 1:
        raise InputError(
            f"method {method} generates images in 0..1, and the inputs run from {low:.3g} to {high:.3g}: "
            "scale them to 0..1 and leave standardize off"
        )


def _layers(
    params: Params, part: str, inputs: Tensor, shift: Tensor | None = None, gates: Sequence[Tensor] = ()
) -> Tensor:
    depth = sum(name.startswith(f"{part}.") and name.endswith(".weight") for name in params)
    values = inputs
    for index in range(depth):
        values = F.linear(values, params[f"{part}.{index}.weight"], params[f"{part}.{index}.bias"])
        if index == 0 and shift is not None:
            values = values + shift
        if index < depth - 1:
            values = F.relu(values)
            if gates:
                values = values * gates[index]
    return values
