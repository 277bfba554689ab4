"""Almost no inner loop: only the head adapts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lifelong.meta.inner_loop import InnerLoop
from lifelong.settings import setting
from lifelong.tree import Params


@dataclass(frozen=True)
class ANIL(InnerLoop):
    """MAML whose inner loop moves the head alone, on features that the outer loop learns.

    The support samples' features are computed once a task, so that further inner steps cost next to nothing.
    """

    family: ClassVar[str] = "gradient"
    paper: ClassVar[str] = "Raghu et al. 2019, 1909.09157"

    layers: tuple[Literal["trunk", "head"], ...] = setting(
        ("head",), "parts that adapt; both together are MAML", min_length=1
    )

    def adapted(self, weights: Params) -> list[str]:
        return [name for name in weights if name.partition(".")[0] in self.layers]
