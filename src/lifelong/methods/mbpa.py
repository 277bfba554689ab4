"""Memory-based parameter adaptation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from lifelong import tree
from lifelong.curvature.per_sample import evaluating
from lifelong.errors import DivergedError
from lifelong.learner import Learner
from lifelong.memory import Columns
from lifelong.methods import samples
from lifelong.methods.er import ER
from lifelong.methods.method import state
from lifelong.methods.rehearsal import stored
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Task
from lifelong.tree import Params

# Numbers in the heads that are adapted at a time: 16 MiB in float32.
_NUMBERS = 2**22


@dataclass
class MbPA(ER):
    """Replay, and before each answer adapt the head to the stored samples that are most like what is asked.

    For a query with features q the head makes `local_steps` steps from its weights W on
    `- sum_k w_k log p(y_k | h_k, V) + pull / 2 ||V - W||^2`, over its nearest neighbours `(h_k, y_k)` in the memory,
    with `w_k` in proportion to `1 / (0.001 + ||h_k - q||^2)`; V answers, and is forgotten (Sprechmann et al. 2018,
    1802.10542, eq. 1 to 5). All queries of a batch adapt side by side.

    Our deviations: features of the memory are computed anew at the end of each task and not kept from when a sample
    came, and training replays the memory, as de Masson d'Autume et al. 2019 (1906.01076) do. Where the task is told,
    neighbours are of that task. `local_steps: 0` is `er`.
    """

    paper: ClassVar[str] = "1802.10542"
    regression: ClassVar[bool] = False

    neighbours: int = setting(32, "stored samples that the head adapts to", ge=1)
    local_steps: int = setting(5, "steps of adaptation before an answer", ge=0)
    local_rate: float = setting(0.1, "learning rate of adaptation", gt=0)
    pull: float = setting(0.1, "how strongly the head is held near what it was; at most 1 / local_rate", ge=0)
    known: Columns = state(dict)

    def after_task(self, learner: Learner, task: Task) -> None:
        """Compute the features of the memory."""
        split = stored(self.memory, task.train.ready(learner.device))
        with evaluating(learner.model), torch.no_grad(), learner.precision():
            batches = split.batches(min(samples.BATCH, learner.largest_batch))
            features = torch.cat([learner.model.features(inputs).float() for inputs, _ in batches])
        assert split.tasks is not None
        self.known = {"features": features, "targets": split.targets, "tasks": split.tasks}

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        features = learner.model.features(inputs)
        known = self._within(learner, task)
        if self.local_steps == 0 or not known or len(known["targets"]) == 0:
            plain: Tensor = learner.model.head(features, task)
            return plain
        # Who asks may be in inference mode, in which nothing can be differentiated.
        with torch.inference_mode(False), torch.no_grad():
            return self._adapted(learner.model.head, features.float().clone(), known, task)

    def _within(self, learner: Learner, task: int) -> Columns:
        """Return the known samples that may be neighbours of a query of `task`."""
        if learner.scenario is not Scenario.TASK or not self.known:
            return self.known
        rows = (self.known["tasks"] == task).nonzero().flatten()
        return {name: each[rows] for name, each in self.known.items()}

    def _adapted(self, head: nn.Module, queries: Tensor, known: Columns, task: int) -> Tensor:
        """Return the logits `[queries, outputs]` of heads that have adapted, one to each of `queries`."""
        start = {name: each.detach() for name, each in tree.parameters(head).items()}
        distances = torch.cdist(queries, known["features"]).square()
        nearest, rows = distances.topk(min(self.neighbours, len(known["targets"])), largest=False)
        weights = 1 / (1e-3 + nearest)
        weights = weights / weights.sum(1, keepdim=True)

        def loss(params: Params, features: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
            logits = functional_call(head, params, (features, task))
            return (weights * F.cross_entropy(logits, targets, reduction="none")).sum()

        def answer(query: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
            params = start
            for _ in range(self.local_steps):
                slopes = grad(loss)(params, known["features"][rows], known["targets"][rows], weights)
                params = {
                    name: each - self.local_rate * (slopes[name] + self.pull * (each - start[name]))
                    for name, each in params.items()
                }
            logits: Tensor = functional_call(head, params, (query.unsqueeze(0), task))
            return logits[0]

        at_once = max(1, _NUMBERS // max(1, tree.size(start)))
        found: Tensor = vmap(answer, chunk_size=at_once)(queries, rows, weights)
        if not bool(found.isfinite().all()):
            raise DivergedError(
                f"answers are not finite numbers after {self.local_steps} local steps: try a smaller "
                f"method.local_rate = {self.local_rate:g}, or method.pull = {self.pull:g}"
            )
        return found
