"""Task arithmetic with a coefficient for each layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lifelong.errors import InputError
from lifelong.merging.rule import Array, Rule, Site, Stack
from lifelong.merging.rules.linear import weighted_sum
from lifelong.merging.rules.task_arithmetic import task_vectors
from lifelong.settings import setting

Coefficients = Mapping[str, float | tuple[float, ...]]


@dataclass(frozen=True)
class LayerWise(Rule):
    """Add task vectors with coefficients that hang on the layer: `theta_0 + sum_t lambda_t^l tau_t`.

    The layer-wise merge of Yang et al. 2023 (2310.02575), with coefficients that are given. A pattern is a piece of
    the names of a layer's tensors, such as `layers.3.`, or `*` for all; the first that fits counts, and a tensor that
    none fits is refused. Recipes may as well filter the weights of task arithmetic.
    """

    family: ClassVar[str] = "task vectors"
    paper: ClassVar[str] = "2310.02575"
    needs_base: ClassVar[bool] = True

    coefficients: str | Coefficients = setting(
        lambda: {"*": 0.3}, "from patterns to a number, or to one for each expert; or a JSON file of that"
    )

    def __post_init__(self) -> None:
        if isinstance(self.coefficients, str):
            object.__setattr__(self, "coefficients", _read(Path(self.coefficients)))

    def check(self, experts: int) -> None:
        super().check(experts)
        assert not isinstance(self.coefficients, str)
        for pattern, each in self.coefficients.items():
            if isinstance(each, tuple) and len(each) != experts:
                raise InputError(
                    f"rule layer_wise: {pattern!r} has {len(each)} coefficients for {experts} experts: give one for "
                    f"each, or one for all"
                )

    def survey(self, stack: Stack) -> list[float]:
        """Return the coefficient of each expert."""
        assert not isinstance(self.coefficients, str)
        for pattern, each in self.coefficients.items():
            if pattern == "*" or pattern in stack.name:
                return list(each) if isinstance(each, tuple) else [each] * len(stack.experts)
        raise InputError(f"rule layer_wise: no pattern fits tensor {stack.name!r}; '*' fits all")

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        total = weighted_sum(task_vectors(base, experts), facts)
        total += base
        return total


def _read(path: Path) -> Coefficients:
    """Return the coefficients in the JSON file `path`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(name): tuple(map(float, each)) if isinstance(each, list) else float(each)
            for name, each in found.items()
        }
    except OSError as error:
        raise InputError(f"rule layer_wise: {path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            f"rule layer_wise: {path} must be JSON that maps patterns to numbers, or to lists of them"
        ) from None
