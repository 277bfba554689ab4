"""Take one neural network through many tasks: learn each, keep the old ones, and measure what it costs."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Imported at first use: `import lifelong` must not cost an import of torch.
_HOMES = {
    "run": "lifelong.api",
    "compare": "lifelong.api",
    "merge": "lifelong.merging.in_memory",
    "Pool": "lifelong.merging.pool",
    "load": "lifelong.data",
    "from_tensors": "lifelong.data",
    "LifelongError": "lifelong.errors",
    "InputError": "lifelong.errors",
}

__all__ = ["InputError", "LifelongError", "Pool", "__version__", "compare", "from_tensors", "load", "merge", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lifelong' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
