"""The registry of merge rules: the names that recipes and the command line know."""

from __future__ import annotations

from lifelong.merging.rule import Rule
from lifelong.merging.rules.linear import Linear
from lifelong.merging.rules.magmax import MagMax
from lifelong.merging.rules.task_arithmetic import TaskArithmetic
from lifelong.merging.rules.ties import TIES

RULES: dict[str, type[Rule]] = {
    "linear": Linear,
    "task_arithmetic": TaskArithmetic,
    "ties": TIES,
    "magmax": MagMax,
}
