"""Body only update in the inner loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lifelong.meta.inner_loop import InnerLoop
from lifelong.tree import Params


@dataclass(frozen=True)
class BOIL(InnerLoop):
    """MAML whose inner loop moves the trunk alone: features change with the task, under a head that does not."""

    family: ClassVar[str] = "gradient"
    paper: ClassVar[str] = "Oh et al. 2020, 2008.08882"
    needs_trunk: ClassVar[bool] = True

    def adapted(self, weights: Params) -> list[str]:
        return [name for name in weights if name.startswith("trunk.")]
