"""Bias correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong import randomness
from lifelong.curvature.per_sample import evaluating
from lifelong.learner import Batch, Learner
from lifelong.memory import Buffer
from lifelong.methods.exemplars import check_capacity, cut, keep, renew
from lifelong.methods.method import Method, state
from lifelong.methods.rehearsal import stored
from lifelong.methods.samples import BATCH
from lifelong.methods.teacher import Teacher
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Split, Task, joined


@dataclass
class Correction:
    """`q_k = scale * o_k + shift` for the classes `first` to `end - 1`, `q_k = o_k` for all others."""

    scale: float = 1.0
    shift: float = 0.0
    first: int = 0
    end: int = 0

    def of(self, logits: Tensor) -> Tensor:
        """Return `logits` `[batch, classes]` corrected."""
        new = self.scale * logits[:, self.first : self.end] + self.shift
        return torch.cat([logits[:, : self.first], new, logits[:, self.end :]], dim=1)


@dataclass
class BiC(Method):
    """Take the bias towards new classes out of the last layer, with two numbers fitted on held-out samples.

    The network learns new samples and exemplars with `(1 - l) * CE + l * KL(old || new)` over the old classes, l = old
    classes / all, both distributions softened by T = 2. Then `q_k = a * o_k + b` for the new classes k, where a and b
    minimise the cross-entropy on held-out samples, as many of each class (Wu et al. 2019, 1905.13260, eq. 1 to 5). They
    are set aside before a class is learned, count among its exemplars, and are never learned from. The old network that
    is distilled answers with its own correction.

    Our deviations: a and b are found by L-BFGS to the end instead of by epochs of gradient descent; exemplars are
    chosen by herding, as by iCaRL.
    """

    family: ClassVar[str] = "rehearsal"
    paper: ClassVar[str] = "1905.13260"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.CLASS,)
    keeps_samples: ClassVar[bool] = True

    capacity: int = setting(2000, "exemplars kept at most, shared evenly by the classes", ge=1)
    held_out: float = setting(0.1, "share of the exemplars that the correction is fitted on, 0 to 1", gt=0, lt=1)
    temperature: float = setting(2.0, "softens the distilled distributions, above 0", gt=0)
    memory: Buffer = state(Buffer)
    aside: Buffer = state(Buffer)
    teacher: Teacher = state(Teacher)
    old: int = state(int)
    seen: int = state(int)
    correction: Correction = state(Correction)

    def setup(self, learner: Learner) -> None:
        """Raise `InputError` where some class would not have an exemplar to learn and another one to be held out."""
        check_capacity(learner, self.capacity, least=2)

    def before_task(self, learner: Learner, task: Task) -> None:
        self.old, self.seen = min(task.classes), max(task.classes) + 1
        self.teacher.forget_copy()

    def data(self, learner: Learner, tasks: Sequence[Task]) -> Split | None:
        learned, _ = self._divided(learner, tasks[-1])
        if len(self.memory) == 0:
            return learned
        return joined([(-1, stored(self.memory, learned)), (tasks[-1].index, learned)], learner.device)

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        if not self.teacher.weights:
            return loss
        with torch.no_grad():
            answers = self.teacher.network(learner)(batch.inputs, batch.task)[:, : self.old]
            goal = (self.correction.of(answers) / self.temperature).softmax(1)
        student = (logits[:, : self.old] / self.temperature).log_softmax(1)
        distilled = F.kl_div(student, goal, reduction="batchmean")
        weight = self.old / self.seen
        return (1 - weight) * loss + weight * distilled

    def after_task(self, learner: Learner, task: Task) -> None:
        learned, held = self._divided(learner, task)
        count = self._count()
        cut(self.aside, count)
        for label in task.classes:
            keep(self.aside, task, held.take((held.targets == label).nonzero().flatten()), label)
        if self.old:
            known = stored(self.aside, held)
            self.correction = fitted(_logits(learner, known, task.index), known.targets, self.old)
        renew(self.memory, learner, task, learned, self.capacity // self.seen - count)
        self.teacher.remember(learner)

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        return self.correction.of(super().logits(learner, inputs, task))

    def _count(self) -> int:
        """Return how many samples of each class are set aside."""
        share = self.capacity // self.seen
        return min(max(1, round(self.held_out * share)), share - 1)

    def _divided(self, learner: Learner, task: Task) -> tuple[Split, Split]:
        """Return the samples of `task` to learn from, and those to set aside."""
        ready = task.train.ready(learner.device)
        order = torch.randperm(len(ready), generator=randomness.generator(learner.seed, "held out", task.index))
        shuffled = ready.targets.cpu()[order]
        own = [order[shuffled == label].to(learner.device) for label in task.classes]
        # A class with so few samples that none would be left gives one less.
        counts = [min(self._count(), len(rows) - 1) for rows in own]
        held = torch.cat([rows[:count] for rows, count in zip(own, counts, strict=True)])
        learned = torch.cat([rows[count:] for rows, count in zip(own, counts, strict=True)])
        return ready.take(learned.sort().values), ready.take(held)


def fitted(logits: Tensor, targets: Tensor, first: int) -> Correction:
    """Return the correction of the classes from `first` on that minimises the mean cross-entropy.

    Args:
        logits: `[samples, classes]`, as the network gives them.
        targets: `[samples]` int64.
        first: the first class that is new.
    """
    # On the CPU, as Apple's GPUs have no float64.
    fixed, labels = logits.detach().cpu().double(), targets.cpu()
    numbers = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [numbers], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        changed = torch.cat([fixed[:, :first], numbers[0] * fixed[:, first:] + numbers[1]], dim=1)
        loss = F.cross_entropy(changed, labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    scale, shift = numbers.tolist()
    return Correction(scale, shift, first, logits.shape[1])


@torch.no_grad()
def _logits(learner: Learner, split: Split, task: int) -> Tensor:
    with evaluating(learner.model), learner.precision():
        return torch.cat([learner.model(inputs, task).float() for inputs, _ in split.batches(BATCH)])
