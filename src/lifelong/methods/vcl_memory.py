"""Variational continual learning with a memory of the likelihood terms that a Gaussian fits worst."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn import functional as F

from lifelong import randomness, tree
from lifelong.curvature.per_sample import evaluating
from lifelong.learner import Batch, Learner
from lifelong.memory import Buffer
from lifelong.methods.method import state
from lifelong.methods.vcl import VCL
from lifelong.models import mean_field
from lifelong.models.network import Network
from lifelong.settings import setting
from lifelong.streams.task import Split, Task
from lifelong.tree import Params

# Numbers in the gradients of the samples that are measured at a time: 16 MiB in float32.
_NUMBERS = 2**22


@dataclass
class VCLMemory(VCL):
    """VCL whose Gaussian leaves out the samples that it fits worst; a small memory keeps them as they are.

    What is known of old tasks is `q(w) prod_{i in M} p(y_i | x_i, w)^u_i`, a Gaussian times the likelihoods of so many
    `memories` (Kurle et al. 2020, ICLR). A task is learned by VCL from its samples and from the memory, with q, which
    has forgotten as `VCL` says, as prior. Then the likelihood term of each of these samples gets a Gaussian `r_i`
    (`Terms`). The samples whose terms differ most from theirs are the new memory, and q is what is left of the
    Gaussian that has learned all, without them: `q_learned / prod_{i in M} r_i`. Terms in memory forget as q does:
    before each task `u_i` is multiplied by `1 - forget`. Answers are those of `q_learned`.

    Our deviations: terms are judged one by one, by the divergence that exchanging one makes; their precisions are
    squared gradients, never negative, as derivatives by the variance need many more draws; q's precision stays at least
    at that before the task, and `u_i` is the same for diffusion.
    """

    paper: ClassVar[str] = "ICLR 2020"
    keeps_samples: ClassVar[bool] = True
    alone: ClassVar[str] = (
        "its memory is taken out of a Gaussian over all weights, which others hold or leave out in part"
    )

    memories: int = setting(50, "samples that are kept, of all tasks together", ge=1)
    keep: Literal["misfit", "random"] = setting("misfit", "which are kept: those that a Gaussian fits worst, or any")
    candidates: int = setting(1000, "samples of a task that may be kept, drawn at random", ge=1)
    pairs: int = setting(5, "pairs of drawn weights, mean + d and mean - d, that terms are measured with", ge=1)
    memory: Buffer = state(Buffer)
    left_mean: Params = state(dict)
    left_logvar: Params = state(dict)

    def old(self, learner: Learner) -> tuple[Params, Params]:
        return tree.snapshot(self.left_mean), tree.snapshot(self.left_logvar)

    def before_task(self, learner: Learner, task: Task) -> None:
        super().before_task(learner, task)
        if len(self.memory):
            self.memory.columns["weights"] *= 1 - self.forget

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        loss = super().loss(learner, batch, logits, loss)
        if len(self.memory) == 0:
            return loss
        rows = self.memory.rows(torch.arange(len(self.memory)))
        inputs, posterior = batch.scaled(rows["inputs"]), self.posterior(learner)
        _, logits = mean_field.answer(learner.model, *posterior, inputs, rows["tasks"], local=self.local)
        terms = F.cross_entropy(logits, rows["targets"], reduction="none")
        return loss + (rows["weights"] * terms).sum() / self.count

    def after_task(self, learner: Learner, task: Task) -> None:
        super().after_task(learner, task)
        mean, logvar = map(tree.snapshot, self.posterior(learner))
        drawn = randomness.generator(learner.seed, "terms", task.index)
        measure = Measure(learner.model, mean, paired(logvar, self.pairs, drawn))
        split = task.train.ready(learner.device)
        kept = self._offered(learner, task, drawn)
        if self.keep == "misfit":
            misfit = torch.empty(len(kept))
            for rows, terms in measure(kept, split):
                misfit[rows] = terms.misfit.float().cpu()
            chosen = misfit.argsort(descending=True, stable=True)
        else:
            chosen = torch.randperm(len(kept), generator=drawn)
        kept.keep(chosen[: self.memories])
        slope, precision = tree.zeros_like(mean), tree.zeros_like(mean)
        for _, terms in measure(kept, split):
            slope, precision = tree.add(slope, terms.slope), tree.add(precision, terms.precision)
        self.memory = kept
        self.left_mean, self.left_logvar = divided(mean, logvar, slope, precision, self.prior_logvar)

    def _offered(self, learner: Learner, task: Task, drawn: torch.Generator) -> Buffer:
        """Return the memory, and behind it the samples of `task` that may come into it."""
        split = self.data(learner, [task])
        assert split is not None  # VCL learns from something in every task
        taken = split.take(torch.randperm(len(split), generator=drawn)[: self.candidates].to(learner.device))
        offered = Buffer()
        if len(self.memory):
            offered.append(self.memory.rows(torch.arange(len(self.memory))), 0)
        tasks, weights = torch.full_like(taken.targets, task.index), torch.ones(len(taken), device=learner.device)
        offered.append({"inputs": taken.inputs, "targets": taken.targets, "tasks": tasks, "weights": weights}, 0)
        return offered


@dataclass(frozen=True)
class Terms:
    """Likelihood terms and their Gaussians `r(w) ~ exp(g (w - m) - h (w - m)^2 / 2)`, for weights from `N(m, .)`.

    Args:
        slope: g, the mean of `u d/dw log p(y | x, w)`, summed over samples.
        precision: h, the mean of `u (d/dw log p(y | x, w))^2`, summed over samples: the curvature as in VOGN (Khan et
            al. 2018, 1806.04854).
        misfit: `[samples]`, `KL(q || q p^u / r)`, normalised: how much the exact term would change q.
    """

    slope: Params
    precision: Params
    misfit: Tensor


@dataclass(frozen=True)
class Measure:
    """Measures likelihood terms with weights `mean + offset` drawn from a posterior.

    Args:
        network: in evaluation mode meanwhile.
        mean: m, of the posterior.
        offsets: drawn deviations from it, as `paired` gives them.
    """

    network: Network
    mean: Params
    offsets: list[Params]

    def __call__(self, samples: Buffer, like: Split) -> Iterator[tuple[Tensor, Terms]]:
        """Yield row numbers of `samples`, each once, and their terms; `like` scales their inputs."""
        tasks, chunk = samples.columns["tasks"][: len(samples)].cpu(), max(1, _NUMBERS // tree.size(self.mean))
        with evaluating(self.network):
            for task in tasks.unique().tolist():
                for rows in (tasks == task).nonzero().flatten().split(chunk):
                    columns = samples.rows(rows)
                    inputs = like.scaled(columns["inputs"])
                    yield rows, self.terms(inputs, columns["targets"], columns["weights"], task)

    def terms(self, inputs: Tensor, targets: Tensor, weights: Tensor, task: int) -> Terms:
        """Return the terms of `inputs` `[samples, ...]` of one `task`, each to the power of its weight."""

        def log_likelihood(drawn: Params, sample: Tensor, target: Tensor) -> Tensor:
            _, logits = mean_field.answer_with(self.network, drawn, sample.unsqueeze(0), task)
            return -F.cross_entropy(logits, target.unsqueeze(0))

        each = vmap(grad_and_value(log_likelihood), in_dims=(None, 0, 0))
        slope: Params = {}
        precision: Params = {}
        values: list[Tensor] = []
        for offset in self.offsets:
            gradient, value = each(tree.add(self.mean, offset), inputs, targets)
            squares = tree.mul(gradient, gradient)
            slope = tree.add(slope, gradient) if slope else gradient
            precision = tree.add(precision, squares) if precision else squares
            values.append(weights * value)
        weights = weights / len(values)
        slope, precision = _weighted(slope, weights), _weighted(precision, weights)
        apart = torch.stack(values) - torch.stack([_quadratic(slope, precision, offset) for offset in self.offsets])
        misfit = apart.logsumexp(0) - math.log(len(apart)) - apart.mean(0)
        return Terms(_over_samples(slope), _over_samples(precision), misfit)


def paired(logvar: Params, pairs: int, drawn: torch.Generator) -> list[Params]:
    """Return `pairs` deviations from the mean drawn from `N(0, exp(v))`, and for each its negative.

    With pairs the mean slope of a quadratic term is exactly that at the mean, however few are drawn.
    """
    offsets: list[Params] = []
    for _ in range(pairs):
        one = tree.map(
            lambda v: (v / 2).exp() * torch.randn(v.shape, generator=drawn, dtype=v.dtype).to(v.device), logvar
        )
        offsets += [one, tree.scale(one, -1)]
    return offsets


def divided(
    mean: Params, logvar: Params, slope: Params, precision: Params, prior_logvar: Params
) -> tuple[Params, Params]:
    """Return mean and log-variance of `N(mean, exp(logvar)) / r`, normalised, `r ~ exp(g (w - m) - h (w - m)^2 / 2)`.

    The precision is `1 / exp(v) - h`, the mean `m - g` over it. A precision that would fall below that of the prior
    stays at it, for without any term the prior would be left; where it was below already, it stays as it is.
    """
    whole, least = (tree.map(lambda v: (-v).exp(), one) for one in (logvar, prior_logvar))
    left = tree.map(lambda w, h, p: torch.maximum(w - h, torch.minimum(w, p)), whole, precision, least)
    return tree.map(lambda m, g, p: m - g / p, mean, slope, left), tree.map(lambda p: -p.log(), left)


def _weighted(per_sample: Params, weights: Tensor) -> Params:
    return tree.map(lambda t: torch.einsum("n,n...->n...", weights.to(t.dtype), t), per_sample)


def _over_samples(per_sample: Params) -> Params:
    return tree.map(lambda t: t.sum(0), per_sample)


def _quadratic(slope: Params, precision: Params, offset: Params) -> Tensor:
    """Return `[samples]`, the exponent of each sample's Gaussian at `mean + offset`."""
    parts = [
        slope[name].flatten(1) @ one.flatten() - precision[name].flatten(1) @ one.flatten().square() / 2
        for name, one in offset.items()
    ]
    return torch.stack(parts).sum(0)
