"""What rules have in common that put task matrices together from their singular vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lifelong.merging.rule import Array, Rule, Site
from lifelong.merging.rules.regmean import mean
from lifelong.merging.rules.task_arithmetic import task_vectors
from lifelong.settings import setting


@dataclass(frozen=True)
class Spectral(Rule):
    """Move the base by what `together` makes of the task matrices, and tensors that are no matrices by their mean."""

    family: ClassVar[str] = "singular vectors"
    needs_base: ClassVar[bool] = True
    spelled: ClassVar[Mapping[str, str]] = {"lambda": "scale"}
    blockwise: ClassVar[bool] = False

    scale: float = setting(1.0, "lambda, the scale of the merged task vector")

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        changes = task_vectors(base, experts)
        return base + self.scale * (self.together(changes) if changes[0].ndim == 2 else mean(changes))

    def together(self, changes: list[Array]) -> Array:
        """Return the merged task matrix; `changes` are `[rows, columns]` each."""
        raise NotImplementedError
