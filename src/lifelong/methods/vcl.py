"""Variational continual learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lifelong import randomness, tree
from lifelong.curvature.per_sample import evaluating
from lifelong.errors import InputError
from lifelong.learner import Batch, Learner
from lifelong.memory import Buffer
from lifelong.methods.method import Method, state
from lifelong.models import mean_field
from lifelong.models.heads import MultiHead
from lifelong.settings import setting
from lifelong.streams.task import Split, Task
from lifelong.tree import Params

# Of the means of a head that is new: small, as the old heads' authors chose them.
_NEW_HEAD = 0.1


@dataclass
class VCL(Method):
    """Learn a Gaussian for each weight, with the posterior of the last task as the prior of this one.

    `min_q mean CE + KL(q || q_old) / N` over `q = prod_i N(m_i, exp(v_i))`, the cross-entropy for weights drawn from
    q, N the task's training samples, `q_old = N(0, prior_variance)` at first (Nguyen et al. 2018, 1710.10628, eq. 4).
    The network's own parameters are the means. In the first share `start` of the first task's steps they are trained
    alone, to the maximum of the likelihood; all log-variances begin at `log_variance`. A new head's means are drawn
    from N(0, 0.01); with `deviation` all means of the first task are drawn so too, cut at two deviations.

    Answers are the logarithm of the probabilities averaged over `samples` drawn weights; `log_probabilities` has each
    draw's, and `uncertainty` tells from them how unsure the answers are, and how much of it is for want of data.

    Coresets: so many training samples of each task are held out, at random or by greedy k-center, and after each task
    a *copy* of the posterior is trained on all of them, which answers until the next task and is then dropped
    (algorithm 1). It keeps these samples.

    Where later tasks begin: weights that earlier ones did not need have the wide posterior of the prior, whose noise a
    new task that needs them must first get rid of, and till then moves others. `begin: variances` starts them narrow
    instead, and `anew` at new small means too, as the authors' later code does (Swaroop et al. 2019, 1905.02099). The
    prior is the old posterior in each case. Heads of old tasks stay as they are.

    Forgetting, for streams that change (Kurle et al. 2020, ICLR): before each task the old posterior moves a share
    `forget` towards the first prior, tempered `q^(1 - forget) p0^forget` or diffused by an Ornstein-Uhlenbeck process.
    `vcl-memory` has their memory of the samples that a Gaussian fits worst.

    Our deviations: one copy is trained on all coresets together, where the authors' code trains one for each head. The
    authors' first task has all its epochs twice, for the likelihood and then for the Gaussian.
    """

    family: ClassVar[str] = "bayesian"
    paper: ClassVar[str] = "1710.10628"

    samples: int = setting(100, "drawn weights that an answer averages over", ge=1)
    draws: int = setting(1, "drawn weights that a step's loss averages over", ge=1)
    local: bool = setting(True, "layers draw the sums of each sample instead of weights (local reparameterisation)")
    start: float = setting(0.5, "share of the first task's steps that train the means alone, 0 to 1", ge=0, le=1)
    deviation: float | None = setting(
        None,
        "deviation of the first means, 0.1 in the authors' code; the network's own start by default",
        gt=0,
    )
    log_variance: float = setting(-6.0, "logarithm of the variance that each weight begins with")
    prior_variance: float = setting(1.0, "variance of the first prior, of mean 0, above 0", gt=0)
    coreset: int = setting(0, "training samples of each task that are held out and kept", ge=0)
    choose: Literal["random", "k-center"] = setting("random", "how the samples of a coreset are chosen")
    coreset_steps: int = setting(100, "steps on all coresets, after each task", ge=1)
    begin: Literal["posterior", "variances", "anew"] = setting(
        "posterior",
        "where the training of a later task begins: at the old posterior, at its means with variances of log_variance, "
        "or at new small means with these too",
    )
    forget: float = setting(0.0, "share of the first prior in the old posterior before each task, 0 to 1", ge=0, le=1)
    forget_by: Literal["tempering", "diffusion"] = setting("tempering", "how the old posterior forgets")
    logvar: Params = state(dict)
    prior_mean: Params = state(dict)
    prior_logvar: Params = state(dict)
    count: int = state(int)
    held: Tensor = state(lambda: torch.empty(0, dtype=torch.int64))
    coresets: Buffer = state(Buffer)
    tuned_mean: Params = state(dict)
    tuned_logvar: Params = state(dict)

    def before_task(self, learner: Learner, task: Task) -> None:
        live = tree.parameters(learner.model)
        new = [name for name in live if name not in self.logvar]
        moved = mean_field.tempered if self.forget_by == "tempering" else mean_field.diffused
        self.prior_mean, self.prior_logvar = self.old(learner)
        if self.forget > 0 and self.prior_mean:
            self.prior_mean, self.prior_logvar = moved(
                self.prior_mean, self.prior_logvar, self.prior_variance, self.forget
            )
        if task.index == 0 and self.deviation is not None:
            _draw_anew(live, self.deviation, randomness.generator(learner.seed, "first means"))
        drawn = randomness.generator(learner.seed, "new head", task.index)
        for name in new:
            zeros = torch.zeros_like(live[name], requires_grad=False)
            self.prior_mean[name] = zeros
            self.prior_logvar[name] = zeros + math.log(self.prior_variance)
            self.logvar[name] = zeros + self.log_variance
            if task.index > 0:
                with torch.no_grad():
                    live[name].copy_(_NEW_HEAD * torch.randn(zeros.shape, generator=drawn))
        if task.index > 0:
            self._begin(learner, drawn)
        self.tuned_mean, self.tuned_logvar = {}, {}
        self._hold_out(learner, task)

    def posterior(self, learner: Learner) -> tuple[Params, Params]:
        """Return the live means and log-variances of all weights that have them."""
        mean = {name: each for name, each in tree.parameters(learner.model).items() if name in self.logvar}
        return mean, {name: self.logvar[name] for name in mean}

    def old(self, learner: Learner) -> tuple[Params, Params]:
        """Return mean and log-variance of the Gaussian that stands for all tasks so far, to be the next one's prior."""
        mean, logvar = self.posterior(learner)
        return tree.snapshot(mean), tree.snapshot(logvar)

    def trainable(self, learner: Learner) -> Params:
        means = super().trainable(learner)
        logvar = {f"logvar.{name}": self.logvar[name].requires_grad_() for name in means}
        return {**means, **logvar}

    def data(self, learner: Learner, tasks: Sequence[Task]) -> Split | None:
        ready = tasks[-1].train.ready(learner.device)
        if self.coreset == 0:
            return ready
        left = torch.ones(len(ready), dtype=torch.bool, device=learner.device)
        left[self.held] = False
        return ready.take(left.nonzero().flatten())

    def forward(self, learner: Learner, batch: Batch) -> Tensor:
        if self._starting(learner):
            return super().forward(learner, batch)
        batch.features, logits = self._drawn(learner, batch)
        return logits

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        if self._starting(learner):
            return loss
        for _ in range(self.draws - 1):
            loss = loss + F.cross_entropy(self._drawn(learner, batch)[1], batch.targets)
        apart = mean_field.divergence(*self.posterior(learner), self.prior_mean, self.prior_logvar)
        return loss / self.draws + apart / self.count

    def after_task(self, learner: Learner, task: Task) -> None:
        if self.coreset > 0:
            self._tune(learner, task.train.take(torch.arange(0)).ready(learner.device))

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        """Return the logarithm of the mean probabilities, `[batch, outputs]`."""
        if not self.logvar:  # nothing has been learned
            return super().logits(learner, inputs, task)
        return self.log_probabilities(learner, inputs, task).logsumexp(0) - math.log(self.samples)

    def log_probabilities(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        """Return the log-probabilities `[samples, batch, outputs]` of each drawn set of weights, the same each time.

        Args:
            learner: its network in evaluation mode, for otherwise dropout adds to what the weights leave open.
            inputs: `[batch, ...]` as the network takes them.
            task: index of the task that `inputs` are of.
        """
        drawn = randomness.generator(learner.seed, "answers")

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=drawn, dtype=like.dtype).to(like.device)

        mean, logvar = self.posterior(learner)
        mean, logvar = self.tuned_mean or mean, self.tuned_logvar or logvar
        answers = [
            mean_field.answer(learner.model, mean, logvar, inputs, task, noise=noise, local=False)[1]
            for _ in range(self.samples)
        ]
        return torch.stack(answers).log_softmax(2)

    def _starting(self, learner: Learner) -> bool:
        return learner.clock.task == 0 and learner.clock.step < self.start * learner.clock.steps

    def _drawn(self, learner: Learner, batch: Batch) -> tuple[Tensor, Tensor]:
        return mean_field.answer(learner.model, *self.posterior(learner), batch.inputs, batch.task, local=self.local)

    def _begin(self, learner: Learner, drawn: torch.Generator) -> None:
        """Put what the new task trains where `begin` says; the prior is the old posterior all the same."""
        if self.begin == "posterior":
            return
        own = isinstance(learner.model.head, MultiHead)
        shared = {name: each for name, each in self.logvar.items() if not (own and name.startswith("head."))}
        self.logvar.update({name: torch.full_like(each, self.log_variance) for name, each in shared.items()})
        if self.begin == "anew":
            live = tree.parameters(learner.model)
            _draw_anew({name: live[name] for name in shared}, self.deviation or _NEW_HEAD, drawn)

    def _hold_out(self, learner: Learner, task: Task) -> None:
        self.count = len(task.train) - self.coreset
        self.held = torch.empty(0, dtype=torch.int64, device=learner.device)
        if self.coreset == 0:
            return
        if self.count < 1:
            raise InputError(
                f"method vcl: a coreset of {self.coreset} leaves nothing to train on of the {len(task.train)} training "
                f"samples of task {task.index + 1} ({task.name})"
            )
        ready = task.train.ready(learner.device)
        drawn = torch.randperm(len(ready), generator=randomness.generator(learner.seed, "coreset", task.index))
        if self.choose == "random":
            self.held = drawn[: self.coreset].to(learner.device)
        else:
            self.held = k_center(ready.scaled(ready.inputs).flatten(1), self.coreset, int(drawn[0]))
        taken = ready.take(self.held)
        tasks = torch.full_like(taken.targets, task.index)
        self.coresets.append({"inputs": taken.inputs, "targets": taken.targets, "tasks": tasks}, task.index)

    def _tune(self, learner: Learner, split: Split) -> None:
        """Train a copy of the posterior on all coresets, whose inputs `split` scales, with the posterior as prior."""
        prior_mean, prior_logvar = map(tree.snapshot, self.posterior(learner))
        mean = {name: each.clone().requires_grad_() for name, each in prior_mean.items()}
        logvar = {name: each.clone().requires_grad_() for name, each in prior_logvar.items()}
        rows = self.coresets.rows(torch.arange(len(self.coresets)))
        inputs, targets, tasks = split.scaled(rows["inputs"]), rows["targets"], rows["tasks"]
        optimizer = learner.make_optimizer([*mean.values(), *logvar.values()])  # type: ignore[list-item]
        with evaluating(learner.model):
            for _ in range(self.coreset_steps):
                with learner.precision():
                    _, logits = mean_field.answer(learner.model, mean, logvar, inputs, tasks, local=self.local)
                    apart = mean_field.divergence(mean, logvar, prior_mean, prior_logvar)
                    loss = F.cross_entropy(logits, targets) + apart / len(targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.tuned_mean, self.tuned_logvar = tree.snapshot(mean), tree.snapshot(logvar)


@torch.no_grad()
def _draw_anew(live: Params, deviation: float, drawn: torch.Generator) -> None:
    for each in live.values():
        fresh = torch.empty(each.shape, dtype=each.dtype)
        each.copy_(nn.init.trunc_normal_(fresh, 0.0, deviation, -2 * deviation, 2 * deviation, drawn))


@dataclass(frozen=True)
class Uncertainty:
    """How unsure the answers to a batch are, in nats.

    Args:
        entropy: `[batch]`, of the mean probabilities: all that is open.
        mutual_information: `[batch]`, between answer and weights: what more data would settle. 0 where all drawn
            weights agree, however unsure each is.
    """

    entropy: Tensor
    mutual_information: Tensor


def uncertainty(log_probabilities: Tensor) -> Uncertainty:
    """Return the uncertainty of answers from `[samples, batch, outputs]`, as `VCL.log_probabilities` gives them.

    `H[mean_s p_s]` and `H[mean_s p_s] - mean_s H[p_s]` (Houlsby et al. 2011, 1112.5745, eq. 2).

    Example:
        >>> agree = torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]]).log()
        >>> differ = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).log()
        >>> [round(float(uncertainty(each).mutual_information), 3) for each in (agree, differ)]
        [0.0, 0.693]
    """
    probabilities = log_probabilities.exp()
    entropy = torch.special.entr(probabilities.mean(0)).sum(1)
    within = torch.special.entr(probabilities).sum(2).mean(0)
    return Uncertainty(entropy, (entropy - within).clamp_min(0))  # never negative but for rounding


def k_center(points: Tensor, count: int, first: int) -> Tensor:
    """Return the indices `[count]` of `points` `[n, width]`, each the farthest from those before it.

    Greedy 2-approximation of the k-center problem (Gonzalez 1985), from the point `first`.
    """
    chosen = [first]
    distance = torch.linalg.vector_norm(points - points[first], dim=1)
    distance[first] = -1  # below that of a duplicate, so that none is chosen twice
    while len(chosen) < count:
        farthest = int(distance.argmax())
        distance = torch.minimum(distance, torch.linalg.vector_norm(points - points[farthest], dim=1))
        distance[farthest] = -1
        chosen.append(farthest)
    return torch.tensor(chosen, device=points.device)
