"""Deep generative replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong import randomness, tree
from lifelong.errors import InputError
from lifelong.learner import Batch, Learner
from lifelong.methods import replay
from lifelong.methods.method import Method, state
from lifelong.methods.teacher import Teacher
from lifelong.models import vae
from lifelong.models.heads import MultiHead
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Task
from lifelong.tree import Params


@dataclass
class DGR(Method):
    """Replay what a generator makes of the old tasks, labelled by the network as it was before the task.

    A scholar is a solver, the network, and a generator, a variational autoencoder. At task t both minimise
    `r * L(new) + (1 - r) * L(x')` with r = 1/t, on as many replayed samples x' as new ones; x' are drawn from the
    *previous* scholar's generator and labelled by the previous solver (Shin et al. 2017, 1705.08690, section 3.1). The
    solver's L is the cross-entropy, the generator's the negative evidence lower bound, here per pixel, so that the two
    are of one size. Old answers are over the classes seen by then; where each task has its own head, the loss on
    replayed samples is the mean over the heads of the old tasks.

    Soft targets are the old solver's probabilities at a temperature T: `-T^2 sum_k p_k(x'; T) log q_k(x'; T)`, 0 for
    classes that are new ("distill" in van de Ven & Tolias 2019, 1904.07734). With `conditional`, the decoder is told
    the label (shared labels: of any task), replay draws all old labels evenly, and of heads each has the samples of its
    own task.

    Our deviations: an autoencoder instead of the paper's adversarial pair, as in the comparisons since. Replayed
    samples pass through the network by themselves, so that batch normalisation sees them apart from the new ones.
    """

    family: ClassVar[str] = "generative"
    paper: ClassVar[str] = "1705.08690"

    latent: int = setting(100, "numbers in the generator's code of one input", ge=1)
    hidden: tuple[int, ...] = setting((400, 400), "units of the generator's hidden layers, mirrored in its decoder")
    new_share: float | None = setting(None, "weight r of the new task's loss, 0 to 1; 1/t by default", ge=0, le=1)
    targets: Literal["hard", "soft"] = setting("hard", "the old solver's answer: its best class, or its probabilities")
    temperature: float = setting(2.0, "softens soft targets, above 0", gt=0)
    conditional: bool = setting(False, "the generator knows labels, and replay draws them evenly")
    generator: Params = state(dict)
    outputs: list[int] = state(list)
    old_generator: Params = state(dict)
    old_solver: Teacher = state(Teacher)

    def before_task(self, learner: Learner, task: Task) -> None:
        inputs = replay.check_inputs(learner, task, "dgr")
        if not self.generator:
            seed = randomness.derive(learner.seed, "generator")
            self.generator = vae.initial(inputs[0].numel(), self.hidden, self.latent, seed=seed, like=inputs)
        if self.conditional and replay.brings_classes(learner, task):
            first = self.generator["decoder.0.weight"]
            drawn = randomness.generator(learner.seed, "labels", task.index)
            # As a linear layer draws the weights of such a column.
            rows = (2 * torch.rand(len(task.classes), len(first), generator=drawn) - 1) / first.shape[1] ** 0.5
            self.generator[f"labels.{task.index}"] = rows.to(first).requires_grad_()
        self.outputs.append(len(task.classes))
        self.old_solver.forget_copy()

    def trainable(self, learner: Learner) -> Params:
        return {**super().trainable(learner), **replay.trained(self.generator, learner.clock.task)}

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        known = replay.classes(learner, batch, self.outputs) if self.conditional else None
        loss = loss + self._reconstruction(batch.inputs, known)
        if not self.old_generator:
            return loss
        share = 1 / len(self.outputs) if self.new_share is None else self.new_share
        labels = replay.even(len(batch.inputs), self._seen(), batch.targets.device) if self.conditional else None
        with torch.no_grad():
            replayed = self._draw(len(batch.inputs), labels)
        old = self._solver_loss(learner, replayed.unflatten(1, batch.inputs.shape[1:]), labels)
        return share * loss + (1 - share) * (old + self._reconstruction(replayed, labels))

    def after_task(self, learner: Learner, task: Task) -> None:
        self.old_generator = tree.snapshot(self.generator)
        self.old_solver.remember(learner)

    def generate(self, labels: Tensor) -> Tensor:
        """Return inputs `[n, pixels]` in 0..1 of the classes `labels` `[n]`, from the generator after the last task.

        Args:
            labels: int64, in the order in which the tasks brought their classes.

        Raises:
            InputError: classes that it never saw, or a generator that does not know labels.
        """
        if not self.conditional:
            raise InputError("the generator of dgr draws given classes only where conditional is set")
        seen = self._seen()
        odd = labels[(labels < 0) | (labels >= seen)]
        if len(odd):
            known = f"0 to {seen - 1}" if seen else "none"
            raise InputError(f"the generator of dgr was asked for class {int(odd[0])}, and it has seen {known}")
        with torch.no_grad():
            return self._draw(len(labels), labels)

    def _draw(self, count: int, labels: Tensor | None) -> Tensor:
        like = self.old_generator["decoder.0.weight"]
        codes = torch.randn(count, self.latent, dtype=like.dtype, device=like.device)
        return vae.draw(self.old_generator, codes, _shift(self.old_generator, labels))

    def _reconstruction(self, inputs: Tensor, labels: Tensor | None) -> Tensor:
        bound = vae.bound(self.generator, inputs, _shift(self.generator, labels))
        return -bound.mean() / inputs[0].numel()

    def _solver_loss(self, learner: Learner, replayed: Tensor, labels: Tensor | None) -> Tensor:
        """Return the loss on `replayed` `[batch, ...]`; `labels` `[batch]` are the classes that it was drawn as."""
        teacher, head = self.old_solver.network(learner), learner.model.head
        several = learner.scenario is Scenario.TASK and isinstance(head, MultiHead)
        heads = range(len(self.outputs) - 1) if several else [learner.clock.task]
        seen = sum(self.outputs[:-1]) if learner.scenario is Scenario.CLASS else None
        with torch.no_grad():
            answers = [each[:, :seen] for each in teacher.answers(replayed, heads)]
        found = learner.model.answers(replayed, heads)
        if several and labels is not None:
            return self._told_apart(found, answers, labels)
        terms = [self._entropy(logits, old) for logits, old in zip(found, answers, strict=True)]
        return torch.stack(terms).mean()

    def _told_apart(self, found: Sequence[Tensor], answers: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return the mean loss over samples that each old head has of its own task alone."""
        ends = torch.tensor(self.outputs[:-1], device=labels.device).cumsum(0)
        tasks = torch.bucketize(labels, ends, right=True)
        terms = [
            self._entropy(logits[tasks == index], old[tasks == index]) * (tasks == index).float().mean()
            for index, (logits, old) in enumerate(zip(found, answers, strict=True))
            if bool((tasks == index).any())
        ]
        return torch.stack(terms).sum()

    def _entropy(self, logits: Tensor, old: Tensor) -> Tensor:
        """Return the mean cross-entropy of `logits` `[batch, outputs]` with `old` ones, over the first outputs only."""
        if self.targets == "hard":
            return F.cross_entropy(logits, old.argmax(1))
        wanted = F.pad((old / self.temperature).softmax(1), (0, logits.shape[1] - old.shape[1]))
        return F.cross_entropy(logits / self.temperature, wanted) * self.temperature**2

    def _seen(self) -> int:
        return sum(len(each) for name, each in self.old_generator.items() if name.startswith("labels."))


def _shift(generator: Params, labels: Tensor | None) -> Tensor | None:
    if labels is None:
        return None
    return replay.table(generator, "labels")[labels]
