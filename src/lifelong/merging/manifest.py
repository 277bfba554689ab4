"""What the result of a merge says of itself: its recipe, and a digest of all that went in and came out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xxhash import xxh3_128_hexdigest

from lifelong.errors import InputError, StateError
from lifelong.merging.engine import MANIFEST


def read(folder: Path) -> dict[str, Any]:
    """Return what the manifest in `folder` says.

    Raises:
        InputError: no manifest there: it is not the result of a merge.
        StateError: the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} is not the result of a merge: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return {key: manifest[key] for key in ("recipe", "models", "tensors")}
    except (ValueError, KeyError, TypeError):
        raise StateError(f"{path} is damaged") from None


def fingerprints(manifest: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Return one digest for each model that went in, and one for the result: of the digests of their tensors."""
    models: dict[str, dict[str, str]] = {}
    for name, each in manifest["tensors"].items():
        for model, digest in each["sources"].items():
            models.setdefault(model, {})[name] = digest
    result = {name: each["digest"] for name, each in manifest["tensors"].items()}
    return {model: _digest(tensors) for model, tensors in models.items()}, _digest(result)


def _digest(tensors: Mapping[str, str]) -> str:
    return xxh3_128_hexdigest(json.dumps(sorted(tensors.items())).encode())
