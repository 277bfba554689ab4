"""Functional regularisation of the memorable past."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lifelong import curvature, randomness, tree
from lifelong.curvature.per_sample import evaluating
from lifelong.learner import Batch, Learner
from lifelong.memory import Buffer
from lifelong.methods import samples
from lifelong.methods.method import Method, state
from lifelong.settings import setting
from lifelong.streams.task import Split, Task
from lifelong.tree import Params

# Added to the diagonal of each kernel; in squared probabilities.
_JITTER = 1e-6


@dataclass
class FROMP(Method):
    """Hold the probabilities at memorable samples of old tasks, as tightly as a Gaussian process knows them.

    `loss = CE + strength/2 * sum_s sum_k (m_sk - m*_sk)^T K_sk^-1 (m_sk - m*_sk)`: `m_sk` are the probabilities of
    class k at the memorable samples of task s, `m*_sk` those before the task at hand, and `K_sk = J_sk Sigma J_sk^T`
    their covariance there, J being their Jacobian (Pan, Swaroop, Immer, Eschenhagen, Turner & Khan 2020, 2004.14070).
    Sigma is a diagonal Laplace approximation, `1 / (prior_precision + GGN)`; the generalised Gauss-Newton matrix is
    summed over the samples of all old tasks, each at the weights after it. The memorable samples of a class are those
    of the greatest trace of the Hessian of the loss by the logits, `sum_k p_k (1 - p_k)`.

    As in the authors' code, the covariance of the new function is left free, and tasks and classes are independent. As
    in that of van de Ven, Tuytelaars & Tolias 2022, a step holds as many random samples as its batch has, evenly of all
    old tasks, by their block of `K^-1` (not the inverse of the block of K); and class-incremental probabilities are
    over the classes met up to now, with the new ones, whose head is fresh when the kernels are measured. Both clip the
    norm of the whole gradient at 1, which here is the run's setting `clip`.

    Samples are kept as the network takes them, and are not augmented: the kernel belongs to just these inputs.
    """

    family: ClassVar[str] = "bayesian"
    paper: ClassVar[str] = "2004.14070"
    keeps_samples: ClassVar[bool] = True
    grows: ClassVar[bool] = True

    strength: float = setting(1.0, "the paper's tau, which weighs the penalty, at least 0", ge=0)
    per_class: int = setting(20, "memorable samples of each class of a task", ge=1)
    replay_batch: int | None = setting(None, "memorable samples a step; as many as the batch has by default", ge=1)
    prior_precision: float = setting(1e-3, "precision of each weight before any data, above 0", gt=0)
    samples: int | None = setting(None, "training samples that the GGN is measured on; all by default", ge=1)
    memory: Buffer = state(Buffer)
    ggn: Params = state(dict)
    means: list[Tensor] = state(list)
    precisions: list[Tensor] = state(list)

    def before_task(self, learner: Learner, task: Task) -> None:
        if self.strength == 0:
            return
        prior, live = self.prior_precision, tree.parameters(learner.model)
        variance = {
            name: (self.ggn[name] + prior).reciprocal()
            if name in self.ggn
            else torch.full_like(each.detach(), 1 / prior)
            for name, each in live.items()
        }
        found = [self._function(learner, index, variance) for index in range(task.index)]
        self.means = [mean for mean, _ in found]
        self.precisions = [precision for _, precision in found]

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        if not self.means or self.strength == 0:
            return loss
        return loss + self.strength / 2 * self.distance(learner, self.replay_batch or batch.new)

    def after_task(self, learner: Learner, task: Task) -> None:
        ggn = curvature.fisher(
            learner.model,
            lambda inputs: learner.model(inputs, task.index),
            samples.of_task(learner, task, self.samples),
            kind="true",  # of a softmax, the Fisher information with all classes is the GGN
        )
        for name, mean in ggn.items():
            total = mean * len(task.train)
            self.ggn[name] = self.ggn[name] + total if name in self.ggn else total
        ready = task.train.ready(learner.device)
        chosen = memorable(uncertainties(learner, ready, task.index), ready.targets, self.per_class)
        self.memory.append({"inputs": ready.batch(chosen)[0]}, task.index)

    def distance(self, learner: Learner, count: int) -> Tensor:
        """Return `sum_s sum_k (m_sk - m*_sk)^T K_sk^-1 (m_sk - m*_sk)`, 0-d, over about `count` samples drawn."""
        random = randomness.numpy_generator(learner.seed, "memorable", learner.clock.total_steps)
        share = math.ceil(count / len(self.means))
        drawn = [_drawn(len(mean), share, random) for mean in self.means]
        places = torch.cat([self._places(index)[rows] for index, rows in enumerate(drawn)])
        inputs, tasks = self.memory.rows(places)["inputs"], self.memory.groups[places]
        # The means are those of a network in evaluation mode and at full precision, which K^-1 would magnify losses of.
        with evaluating(learner.model), torch.autocast(learner.device.type, enabled=False):
            features = learner.model.features(inputs, tasks).split([len(rows) for rows in drawn])
            found = [learner.model.head(each, index).softmax(1) for index, each in enumerate(features)]
        distances = []
        for mean, precision, now, chosen in zip(self.means, self.precisions, found, drawn, strict=True):
            rows = chosen.to(mean.device)
            away = (now - mean[rows]).T.unsqueeze(2)
            distances.append((away.mT @ precision[:, rows.unsqueeze(1), rows] @ away).sum())
        return torch.stack(distances).sum()

    def _places(self, index: int) -> Tensor:
        """Return the rows of the memory that hold the samples of the task with this index."""
        return (self.memory.groups == index).nonzero().flatten()

    def _function(self, learner: Learner, index: int, variance: Params) -> tuple[Tensor, Tensor]:
        """Return `m` `[samples, classes]` and `K^-1` `[classes, samples, samples]` of an old task as things are."""
        inputs = self.memory.rows(self._places(index))["inputs"]

        def probabilities(some: Tensor) -> Tensor:
            answers: Tensor = learner.model(some, index)
            return answers.softmax(1)

        with evaluating(learner.model), torch.no_grad():
            mean = probabilities(inputs)
        kernels = curvature.kernels(learner.model, probabilities, inputs, variance)
        return mean, inverse(kernels)


def inverse(kernels: Tensor) -> Tensor:
    """Return `(K + jitter I)^-1` of symmetric positive semi-definite matrices `[..., n, n]`, in their dtype.

    By eigenvalues in float64, as rounding leaves some below 0 where samples are alike or all are sure of.
    """
    values, vectors = torch.linalg.eigh(kernels.cpu().double())  # Apple's GPUs have no float64
    found: Tensor = (vectors / (values.clamp_min(0) + _JITTER).unsqueeze(-2)) @ vectors.mT
    return found.to(kernels)


@torch.no_grad()
def uncertainties(learner: Learner, split: Split, task: int) -> Tensor:
    """Return `sum_k p_k (1 - p_k)` of each sample of a `ready` split: the trace of the loss's Hessian by the logits.

    Not as `1 - sum_k p_k^2`, which is rounded to 0 for all samples that the network is sure of.
    """
    with evaluating(learner.model):
        found = [learner.model(inputs, task).softmax(1) for inputs, _ in split.batches(samples.BATCH)]
    probabilities = torch.cat(found)
    return (probabilities - probabilities.square()).sum(1)


def memorable(scores: Tensor, targets: Tensor, per_class: int) -> Tensor:
    """Return the indices of the `per_class` samples with the greatest `scores` of each label in `targets`.

    All of a label that has fewer. Of samples that are equal the earlier ones are taken.
    """
    order = scores.argsort(descending=True, stable=True)
    return torch.cat([order[targets[order] == label][:per_class] for label in targets.unique()])


def _drawn(samples: int, count: int, random: np.random.Generator) -> Tensor:
    if count >= samples:
        return torch.arange(samples)
    return torch.from_numpy(random.choice(samples, count, replace=False))
