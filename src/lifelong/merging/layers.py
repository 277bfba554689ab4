"""Which layer a tensor belongs to, from its name alone: no table of architectures.

The first number between dots counts layers: `model.layers.12.mlp.up_proj.weight` is in layer 12 of `model.layers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lifelong.errors import InputError

_NUMBERED = re.compile(r"^(.*?)\.(\d+)\.(.*)$")
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
