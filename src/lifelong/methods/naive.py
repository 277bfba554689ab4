"""Fine-tuning: what happens when nothing is done about forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lifelong.methods.method import Method


@dataclass
class Naive(Method):
    """Train on each task in turn, and keep nothing: the lower bound."""

    family: ClassVar[str] = "baseline"
    boundaries: ClassVar[bool] = False
    regression: ClassVar[bool] = True
