"""Which task a sample belongs to, where that is not told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong.curvature.per_sample import evaluating
from lifelong.learner import Learner
from lifelong.methods import samples
from lifelong.methods.class_means import mean_directions
from lifelong.methods.method import Method, state
from lifelong.methods.teacher import Teacher
from lifelong.streams.task import Scenario, Task


@dataclass
class TaskInference(Method):
    """Answer among the classes of the task that a sample seems to come from: the task of the nearest prototype.

    `logits_k = -inf` for classes k of tasks other than `task(argmax_c cos(z(x), p_c))`, where the prototype p_c is the
    mean direction of the features z of the training samples of class c. Features are those of the network as the run
    began with it, which never drift and are good where it is pretrained; they are kept, a copy of the network. For
    chains such as `naive+task-inference` or `magmax+task-inference`; the class whose prototype is nearest of all is
    what `ncm` answers. Ours; what tells the tasks apart is in Expert Gate (Aljundi et al. 2017, 1611.06194) an
    autoencoder for each.
    """

    family: ClassVar[str] = "routing"
    paper: ClassVar[str] = "1611.06194"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.CLASS,)

    start: Teacher = state(Teacher)
    prototypes: list[Tensor] = state(list)

    def setup(self, learner: Learner) -> None:
        self.start.remember(learner)

    def after_task(self, learner: Learner, task: Task) -> None:
        """Make prototypes `[classes, width]` of the classes of `task`."""
        first = sum(map(len, self.prototypes))
        with torch.no_grad(), evaluating(learner.model):
            batches = samples.of_task(learner, task, None)
            found = mean_directions(batches, lambda each: self._features(learner, each), len(task.classes), first)
        self.prototypes.append(found)

    def restrict(self, learner: Learner, inputs: Tensor, logits: Tensor) -> Tensor:
        # Within a task nothing is known yet of its classes.
        if learner.clock.step or not self.prototypes:
            return logits
        tasks = self.tasks_of(learner, inputs)
        owner = torch.repeat_interleave(torch.tensor([len(each) for each in self.prototypes])).to(tasks.device)
        others = F.pad(owner, (0, logits.shape[1] - len(owner)), value=-1) != tasks.unsqueeze(1)
        return logits.masked_fill(others, -torch.inf)

    def tasks_of(self, learner: Learner, inputs: Tensor) -> Tensor:
        """Return the index `[batch]` int64 of the task that each of `inputs` `[batch, ...]` seems to come from."""
        nearest = (self._features(learner, inputs) @ torch.cat(self.prototypes).T).argmax(1)
        ends = torch.tensor([len(each) for each in self.prototypes]).cumsum(0).to(nearest.device)
        return torch.bucketize(nearest, ends, right=True)

    def _features(self, learner: Learner, inputs: Tensor) -> Tensor:
        with learner.precision():
            return self.start.network(learner).features(inputs).float()
