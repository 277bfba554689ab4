"""Fixed random gates: which units of each layer answer in a context, a task or a class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lifelong import randomness
from lifelong.methods.sequence import Stage, through_gates


def drawn(seed: int, context: int, layers: Iterable[int], silent: float) -> list[Tensor]:
    """Return the gates `[units]` of each layer, 0 or 1: a function of seed and context, so nobody has to keep them.

    Args:
        seed: of the learner.
        context: its index.
        layers: numbers of units.
        silent: share of each layer's units whose gate is 0, below 1; at least one unit answers, however few there are.
    """
    generator = randomness.generator(seed, "gates", context)
    found = []
    for units in layers:
        gate = torch.ones(units)
        gate[torch.randperm(units, generator=generator)[: min(round(silent * units), units - 1)]] = 0
        found.append(gate)
    return found


@dataclass
class Gated:
    """A `Network.route`: in each task, units of the trunk's layers answer or are silent by the gates that it draws.

    Args:
        stages: of the trunk; a copy of the network has a route through its own layers.
        seed: of the gates.
        silent: share of each layer's units that are silent.
        gates: of the tasks that were met, `[units]` each, 0 or 1, in the layer's dtype.
    """

    stages: list[Stage]
    seed: int
    silent: float
    gates: dict[int, list[Tensor]] = field(default_factory=dict)

    def __call__(self, inputs: Tensor, task: int | Tensor) -> Tensor:
        """Return features `[batch, width]` of `inputs`; `task` is an index, or `[batch]` where samples differ in it."""
        if isinstance(task, int):
            return through_gates(self.stages, self._of_task(task), inputs)
        present, row = task.unique(return_inverse=True)
        tables = zip(*map(self._of_task, present.tolist()), strict=True)
        return through_gates(self.stages, [torch.stack(table)[row] for table in tables], inputs)

    def _of_task(self, task: int) -> list[Tensor]:
        if task not in self.gates:
            # Made while answering, they serve training too.
            with torch.inference_mode(False):
                made = drawn(self.seed, task, [stage.units for stage in self.stages], self.silent)
                self.gates[task] = [gate.to(stage.layer.weight) for gate, stage in zip(made, self.stages, strict=True)]
        return self.gates[task]
