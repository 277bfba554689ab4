"""Recipes on disk: a YAML file that holds a mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lifelong.errors import InputError, closest


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in the YAML file `path`.

    Raises:
        InputError: no such file, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = closest(path.name, [each.name for each in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise InputError(f"recipe {path} cannot be read ({error.strerror}){near}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"recipe {path} is not UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"recipe {path} must be a mapping of settings, and it is a {type(values).__name__}")
    return values
