"""Context-dependent gating."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lifelong.learner import Batch, Learner
from lifelong.methods import gating, sequence
from lifelong.methods.method import Method, transient
from lifelong.methods.sequence import Stage
from lifelong.settings import setting
from lifelong.streams.task import Scenario


@dataclass
class XdG(Method):
    """Silence a share of the units of every hidden layer, drawn anew for each task.

    Unit i of a hidden layer answers `g_k,i h_i` within task k, in training and at prediction time; the fixed gates
    `g_k` are 0 for a share `gated` of the layer's units and 1 for the rest (Masse, Grant & Freedman 2018, 1802.01569).
    Nothing holds the weights that two tasks have in common: the fewer units a task keeps, the fewer they are. Gates are
    a function of the seed and the task's index: there is no state, and a task to come has its own too.

    The paper gates four units in five of its large networks and stabilises the weights besides: chain it with a method
    that follows the path of training, as in `xdg+si`. Those that measure importances on the network itself (ewc, mas)
    would do so without the gates.

    The trunk is a sequence of linear or convolution layers. Gates come behind what follows a layer (normalisation,
    whose statistics tasks share, activation, pooling), and a gated channel is silent at every place.
    """

    family: ClassVar[str] = "structural"
    paper: ClassVar[str] = "1802.01569"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.TASK,)
    needs_task_id: ClassVar[bool] = True

    gated: float = setting(0.8, "share of each hidden layer's units that are silent within a task, 0 to 1", ge=0, lt=1)
    stages: list[Stage] = transient(list)
    gates: dict[int, list[Tensor]] = transient(dict)

    def setup(self, learner: Learner) -> None:
        """Look at the trunk.

        Raises:
            InputError: it is no sequence of layers.
        """
        self._stages(learner)

    def forward(self, learner: Learner, batch: Batch) -> Tensor:
        batch.features = self._features(learner, batch.inputs, batch.task)
        logits: Tensor = learner.model.head(batch.features, batch.task)
        return logits

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        logits: Tensor = learner.model.head(self._features(learner, inputs, task), task)
        return logits

    def _features(self, learner: Learner, inputs: Tensor, task: int | Tensor) -> Tensor:
        """Return features `[batch, width]` through the gates of `task`, an index or `[batch]` where samples differ."""
        if isinstance(task, int):
            found = self._gates(learner, task)
        else:
            present, row = task.unique(return_inverse=True)
            tables = zip(*(self._gates(learner, index) for index in present.tolist()), strict=True)
            found = [torch.stack(table)[row] for table in tables]
        return sequence.through_gates(self._stages(learner), found, inputs)

    def _gates(self, learner: Learner, task: int) -> list[Tensor]:
        """Return the gates `[units]` of each layer, 0 or 1, in the layer's dtype."""
        if task not in self.gates:
            stages = self._stages(learner)
            # Made while answering, they serve training too.
            with torch.inference_mode(False):
                made = gating.drawn(learner.seed, task, [stage.units for stage in stages], self.gated)
                self.gates[task] = [gate.to(stage.layer.weight) for gate, stage in zip(made, stages, strict=True)]
        return self.gates[task]

    def _stages(self, learner: Learner) -> list[Stage]:
        if not self.stages:
            self.stages = sequence.stages(learner.model.trunk, "xdg")
        return self.stages
