"""What the folder of the weights that a run starts from says about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def said_of(weights: str | None) -> dict[str, Any]:
    """Return the `result.json` beside the weights of a folder that a run or a meta-training left, else nothing."""
    if weights is None:
        return {}
    try:
        found = json.loads((Path(weights) / "result.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def network_of(weights: str | None) -> dict[str, Any]:
    """Return the network, `name` and settings, that the folder of `weights` says they are of, else nothing."""
    recorded = said_of(weights).get("recipe")
    named = recorded.get("model") if isinstance(recorded, dict) else None
    return named if isinstance(named, dict) and isinstance(named.get("name"), str) else {}


def with_network(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings `values` with the network of the weights that they name, where they name no `model`."""
    weights = values.get("weights")
    folder = weights.get("name") if isinstance(weights, Mapping) else weights
    if "model" in values or not isinstance(folder, str):
        return dict(values)
    named = network_of(folder)
    return {**values, "model": named} if named else dict(values)
