"""Context-dependent gating."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lifelong.learner import Learner
from lifelong.methods.gating import Gated
from lifelong.methods.method import Method
from lifelong.methods.sequence import stages
from lifelong.settings import setting
from lifelong.streams.task import Scenario


@dataclass
class XdG(Method):
    """Silence a share of the units of every hidden layer, drawn anew for each task.

    Unit i of a hidden layer answers `g_k,i h_i` within task k, in training and at prediction time; the fixed gates
    `g_k` are 0 for a share `gated` of the layer's units and 1 for the rest (Masse, Grant & Freedman 2018, 1802.01569).
    Nothing holds the weights that two tasks have in common: the fewer units a task keeps, the fewer they are. Gates are
    a function of the seed and the task's index: there is no state, and a task to come has its own too.

    The paper gates four units in five of its large networks and stabilises the weights besides: chain it as in `xdg+si`
    or `xdg+ewc`. Importances, stored samples and answers that are held to are then those of the task's own units.

    The trunk is a sequence of linear or convolution layers. Gates come behind what follows a layer (normalisation,
    whose statistics tasks share, activation, pooling), and a gated channel is silent at every place.
    """

    family: ClassVar[str] = "structural"
    paper: ClassVar[str] = "1802.01569"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.TASK,)
    needs_task_id: ClassVar[bool] = True
    routes: ClassVar[bool] = True
    regression: ClassVar[bool] = True

    gated: float = setting(0.8, "share of each hidden layer's units that are silent within a task, 0 to 1", ge=0, lt=1)

    def setup(self, learner: Learner) -> None:
        """Have the network run through the gates, for this method and all that are chained with it.

        Raises:
            InputError: the trunk is no sequence of layers.
        """
        learner.model.route = Gated(stages(learner.model.trunk, "xdg"), learner.seed, self.gated)

    def reshape(self, learner: Learner) -> None:
        self.setup(learner)
