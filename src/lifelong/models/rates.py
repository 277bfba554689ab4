"""Layers with learning rates of their own: lower ones slower, some frozen, normalisation held."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from lifelong.errors import InputError, closest


def set_rates(trunk: nn.Module, decay: float, rates: Mapping[str, float]) -> dict[nn.Parameter, float]:
    """Return the factor on the learning rate of each parameter of `trunk` that has one other than 1.

    With decay d a parameter of layer l of L learns at `d^(L - l)` of the rate (Howard & Ruder 2018, 1801.06146, section
    3.2, there d = 1/2.6). The number of a layer is the first one in the parameter's name; what is defined before the
    first layer counts as one below it, and what comes after the last as part of that. `rates` multiplies this.

    Args:
        trunk: parameters with the factor 0 are frozen.
        decay: d, above 0 to 1.
        rates: factor, at least 0, by the beginning of a parameter's name.

    Raises:
        InputError: a beginning that no parameter has, or a negative factor.
    """
    named = dict(trunk.named_parameters())
    depths = _depths(list(named))
    top = max(depths.values(), default=0)
    factors = {name: decay ** (top - depths[name]) for name in named}
    for beginning, rate in rates.items():
        found = [name for name in named if _begins(name, beginning)]
        if not found or rate < 0:
            raise InputError(
                f"model.rates: {beginning} = {rate:g} must be at least 0"
                if found
                else f"model.rates: no weight's name begins with {beginning!r}{_near(beginning, named)}"
            )
        factors.update({name: factors[name] * rate for name in found})
    for name, parameter in named.items():
        if factors[name] == 0:
            parameter.requires_grad_(False)
    return {named[name]: factor for name, factor in factors.items() if factor not in (0, 1)}


def fix_batch_norm(module: nn.Module) -> None:
    """Freeze the batch normalisation within `module`; its statistics stay as well, since `train_mode` leaves it be."""
    for each in module.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            each.requires_grad_(False)


def _begins(name: str, beginning: str) -> bool:
    """Whether `name` begins with the whole words of `beginning`; what wraps the network need not be said."""
    return any(f"{each}.".startswith(f"{beginning}.") for each in (name, name.removeprefix("encoder.")))


def _near(beginning: str, named: Mapping[str, nn.Parameter]) -> str:
    words = {name.removeprefix("encoder.").rsplit(".", count)[0] for name in named for count in range(1, 4)}
    return closest(beginning, words) or f": there are {', '.join(sorted(words, key=len)[:4])} and more"


def _depths(names: list[str]) -> dict[str, int]:
    """Return the layer of each parameter, in the order of definition."""
    numbers = [re.search(r"\.(\d+)\.", name) for name in names]
    depths: dict[str, int] = {}
    depth = 0
    for name, number in zip(names, numbers, strict=True):
        depth = depth if number is None else int(number[1]) + 1
        depths[name] = depth
    return depths
