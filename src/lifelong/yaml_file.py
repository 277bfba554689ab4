"""Recipes on disk: a YAML file that holds a mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lifelong.errors import InputError, closest


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in the YAML file `path`.

    Raises:
        InputError: no such file, not YAML, not a mapping, or a key that stands twice, of which YAML keeps the last.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_twice(yaml.compose(text, Loader=yaml.SafeLoader), path)
        values = yaml.safe_load(text)
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


def _refuse_twice(top: yaml.Node | None, path: Path) -> None:
    # By identity, as an alias is the node that it names, and may stand within it.
    waiting, met = [top], {id(top)}
    while waiting:
        node = waiting.pop()
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for place, key in enumerate(keys):
                if any(key.value == other.value for other in keys[:place]):
                    line = key.start_mark.line + 1
                    raise InputError(f"recipe {path}, line {line}: {key.value} stands twice in one mapping: keep one")
            children = [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        waiting += [each for each in children if id(each) not in met]
        met |= set(map(id, children))
