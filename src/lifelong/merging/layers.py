"""Which layer a tensor belongs to, from its name alone: no table of architectures.

The first number between dots counts layers: `model.layers.12.mlp.up_proj.weight` is in layer 12 of `model.layers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from lifelong.errors import InputError

_NUMBERED = re.compile(r"^(.*?)\.(\d+)\.(.*)$")
# What the names of tensors have in them that a network begins with.
_BEGINNINGS = ("embed", "wte", "wpe", "patch", "stem")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "depth")


@dataclass(frozen=True)
class Place:
    """The layer of a tensor: the stack it is in, its number there, and the tensor's name within the layer."""

    stack: str
    layer: int
    rest: str

    def named(self, layer: int) -> str:
        """Return the name that the tensor would have in another layer of the stack."""
        return f"{self.stack}.{layer}.{self.rest}"


def place_of(name: str) -> Place | None:
    """Return the layer that the tensor `name` is in, or None."""
    found = _NUMBERED.match(name)
    return Place(found[1], int(found[2]), found[3]) if found else None


def stacks(names: Iterable[str]) -> dict[str, int]:
    """Return how many layers each stack has."""
    counts: dict[str, int] = {}
    for name in names:
        place = place_of(name)
        if place is not None:
            counts[place.stack] = max(counts.get(place.stack, 0), place.layer + 1)
    return counts


def depth_of(name: str, counts: Mapping[str, int]) -> float:
    """Return where the layer of a tensor lies in its stack: 0 the first, 1 the last or only one; 0 if in none."""
    place = place_of(name)
    if place is None:
        return 0.0
    last = counts[place.stack] - 1
    return place.layer / last if last else 1.0


def begins(name: str) -> bool:
    """Return whether a tensor outside the layers belongs to what comes before them: files may have it anywhere."""
    return any(word in name for word in _BEGINNINGS)


@dataclass(frozen=True, order=True)
class Spot:
    """Where a tensor stands in a table of layers; spots sort as the network runs.

    Args:
        order: sorts layers: what comes before the stacks, each stack, and what comes after them.
        layer: what the layer is called: its number, with its stack where there are several; the module, outside.
        kind: what the tensor is part of within the layer, such as `self_attn` or `mlp`; empty outside the layers.
    """

    order: tuple[int, int]
    layer: str
    kind: str = ""


def spots(names: Sequence[str]) -> dict[str, Spot]:
    """Return where each tensor stands.

    A kind is the first word of a tensor's name within the layer that tells it from others: of `self_attn.q_proj.weight`
    and `mlp.up_proj.weight` the first, of `layer.0.wi.weight` and `layer.1.wi.weight` the second.
    """
    order = {stack: place for place, stack in enumerate(stacks(names))}
    rests: dict[str, list[list[str]]] = {stack: [] for stack in order}
    for place in map(place_of, names):
        if place is not None:
            rests[place.stack].append(place.rest.split("."))
    depths = {stack: _shared(each) + 1 for stack, each in rests.items()}
    first: dict[str, tuple[int, int]] = {}
    found = {}
    for index, name in enumerate(names):
        place = place_of(name)
        if place is None:
            layer = _module(name, list(order), names)
            found[name] = Spot(first.setdefault(layer, (-1 if begins(name) else len(order), index)), layer)
        else:
            layer = str(place.layer) if len(order) == 1 else f"{place.stack}.{place.layer}"
            kind = ".".join(place.rest.split(".")[: depths[place.stack]])
            found[name] = Spot((order[place.stack], place.layer), layer, kind)
    return found


def _module(name: str, stacks: Sequence[str], names: Sequence[str]) -> str:
    """Return what a tensor outside the layers is part of: `norm` of `model.norm.weight` beside `model.layers`."""
    module = name.rpartition(".")[0] or name
    if len(stacks) > 1:
        return module
    beside = [stacks[0].split(".")] if stacks else [each.split(".") for each in names]
    shared = _shared([module.split("."), *beside])
    return module.split(".")[min(shared, module.count("."))]


def _shared(names: Sequence[Sequence[str]]) -> int:
    """Return with how many words all names begin alike."""
    return sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, zip(*names, strict=False)))


def main_stack(names: Iterable[str], config: Mapping[str, Any], model: str) -> str:
    """Return the stack whose layers slices take: the one as long as the config says, or the only one.

    Raises:
        InputError: none, or several that it could be.
    """
    counts = stacks(names)
    claimed = next((config[key] for key in _COUNTS if isinstance(config.get(key), int)), None)
    fitting = [stack for stack, count in counts.items() if claimed is None or count == claimed]
    if len(fitting) != 1:
        raise InputError(
            f"{model}: layers cannot be told from names: stacks are "
            f"{', '.join(f'{stack} ({count})' for stack, count in counts.items()) or 'none'}, and config.json says "
            f"{claimed}"
        )
    return fitting[0]


def sliced_config(config: Mapping[str, Any], layers: list[int]) -> dict[str, Any]:
    """Return a model's config for a network of its `layers`, by number and in that order.

    Counts of layers become the new count; lists with an entry for each layer have those of the layers taken.
    """
    old = next((config[key] for key in _COUNTS if isinstance(config.get(key), int)), None)
    new = dict(config)
    for key, each in config.items():
        if key in _COUNTS and each == old:
            new[key] = len(layers)
        elif isinstance(each, list) and old is not None and old > 1 and len(each) == old and max(layers) < old:
            new[key] = [each[layer] for layer in layers]
    return new
