"""Brain-inspired replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong import randomness, tree
from lifelong.learner import Batch, Learner
from lifelong.methods import gating, replay
from lifelong.methods.method import Method, state, transient
from lifelong.methods.teacher import Teacher
from lifelong.models import Network, vae
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Task
from lifelong.tree import Params


@dataclass
class BIR(Method):
    """Replay what the network itself makes of the old tasks through feedback connections.

    The trunk is the encoder of a variational autoencoder: a linear layer makes of its features mean and log-variance of
    a code z, and a decoder makes inputs of codes (van de Ven, Siegelmann & Tolias 2020, Nature Communications 11:4069).
    Network and decoder minimise `r * L(new) + (1 - r) * L(x')` with r = 1/t at the t-th task, where

        L(new) = CE + G(x, y),  L(x') = -T^2 sum_k p_k log q_k(x'; T) + G(x', p),
        G(x, p) = (log q(z|x) - log sum_k p_k N(z; m_k, s_k^2) - log p(x|z)) / pixels,  z ~ q(z|x) once.

    p are the old network's probabilities at the temperature T, 0 for classes that are new, or 1 at the label. Each
    class has a mode of its own in the prior, `m_k` and `log s_k^2` learned from N(0, 1) on, and as many x' as new
    samples are decoded, by the old network, from codes of all old modes evenly. A share `gated` of each hidden layer
    of the decoder is silent for a context k: its activations are multiplied by `sum_k p_k g_k`. Contexts are the
    classes or, in a domain-incremental stream, the tasks, which are drawn evenly too. Gates are a function of the seed.

    Left out: internal replay. The paper replays hidden activities where the first layers are pretrained and frozen;
    here inputs are replayed, as it does on MNIST. Our deviation: `gated` is the exact share of a layer's units.
    """

    family: ClassVar[str] = "generative"
    paper: ClassVar[str] = "Nat Commun 2020"

    latent: int = setting(100, "numbers in the code of one input", ge=1)
    hidden: tuple[int, ...] = setting((400, 400), "units of the decoder's hidden layers, in the order of the trunk's")
    gated: float = setting(0.1, "share of the decoder's hidden units that are silent in a context, 0 to 1", ge=0, lt=1)
    new_share: float | None = setting(None, "weight r of the new task's loss, 0 to 1; 1/t by default", ge=0, le=1)
    temperature: float = setting(2.0, "softens the old network's answers, above 0", gt=0)
    generator: Params = state(dict)
    outputs: list[int] = state(list)
    old_generator: Params = state(dict)
    old_network: Teacher = state(Teacher)
    gates: list[Tensor] = transient(list)

    def before_task(self, learner: Learner, task: Task) -> None:
        inputs = replay.check_inputs(learner, task, "bi-r")
        if not self.generator:
            decoder = vae.decoder_widths(inputs[0].numel(), self.hidden, self.latent)
            width = next(learner.model.head.parameters()).shape[1]  # that of the weight of its first layer
            parts = {"encoder": [width, 2 * self.latent], "decoder": decoder}
            self.generator = vae.fresh(parts, seed=randomness.derive(learner.seed, "generator"), like=inputs)
        if replay.brings_classes(learner, task):
            drawn = randomness.generator(learner.seed, "modes", task.index)
            for name in ("mean", "logvar"):
                rows = torch.randn(len(task.classes), self.latent, generator=drawn)
                self.generator[f"{name}.{task.index}"] = rows.to(inputs).requires_grad_()
        self.outputs.append(len(task.classes))
        self.old_network.forget_copy()

    def trainable(self, learner: Learner) -> Params:
        return {**super().trainable(learner), **replay.trained(self.generator, learner.clock.task)}

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        modes = len(replay.table(self.generator, "mean"))
        known = F.one_hot(replay.classes(learner, batch, self.outputs), modes).to(batch.inputs)
        tasks = torch.as_tensor(batch.task, device=batch.targets.device).expand_as(batch.targets)
        loss = loss + self._generative(learner, batch.features, batch.inputs, known, tasks)
        if not self.old_generator:
            return loss
        share = 1 / len(self.outputs) if self.new_share is None else self.new_share
        inputs, tasks = self.replayed(learner, len(batch.inputs))
        old = self._replay_loss(learner, inputs.unflatten(1, batch.inputs.shape[1:]), tasks)
        return share * loss + (1 - share) * old

    def after_task(self, learner: Learner, task: Task) -> None:
        self.old_generator = tree.snapshot(
            {name: each for name, each in self.generator.items() if not name.startswith("encoder.")}
        )
        self.old_network.remember(learner)

    @torch.no_grad()
    def replayed(self, learner: Learner, count: int) -> tuple[Tensor, Tensor]:
        """Return inputs `[count, pixels]` in 0..1 that the network before the task makes, and their tasks `[count]`."""
        mean, logvar = (replay.table(self.old_generator, name) for name in ("mean", "logvar"))
        modes, shared = len(mean), learner.scenario is Scenario.DOMAIN
        kinds = replay.even(count, modes * (len(self.outputs) - 1 if shared else 1), mean.device)
        classes = kinds % modes
        tasks = kinds // modes if shared else self._tasks(mean.device)[classes]
        codes = mean[classes] + (logvar[classes] / 2).exp() * torch.randn_like(mean[classes])
        open_ = self._gates(learner, F.one_hot(classes, modes).to(mean), tasks)
        return vae.decode(self.old_generator, codes, gates=open_).sigmoid(), tasks

    def _replay_loss(self, learner: Learner, inputs: Tensor, tasks: Tensor) -> Tensor:
        teacher = self.old_network.network(learner)
        with torch.no_grad():
            seen = sum(self.outputs[:-1]) if learner.scenario is Scenario.CLASS else None
            wanted = self._answers(learner, teacher, teacher.features(inputs, tasks), tasks, seen).exp()
        features = learner.model.features(inputs, tasks)
        answers = self._answers(learner, learner.model, features, tasks, None)
        distilled = -(wanted * answers[:, : wanted.shape[1]]).sum(1).mean() * self.temperature**2
        modes = len(replay.table(self.generator, "mean"))
        believed = F.pad(wanted, (0, modes - wanted.shape[1]))
        return distilled + self._generative(learner, features, inputs, believed, tasks)

    def _answers(self, learner: Learner, network: Network, features: Tensor, tasks: Tensor, seen: int | None) -> Tensor:
        """Return log-probabilities `[batch, classes]` at the temperature, over the first `seen` classes or all.

        Where the task is told, classes are numbered through all tasks, and those of other tasks have none of the mass.
        """
        if learner.scenario is not Scenario.TASK:
            logits: Tensor = network.head(features, learner.clock.task)[:, :seen]
            return (logits / self.temperature).log_softmax(1)
        heads = [network.head(features, task)[:, :count] for task, count in enumerate(self.outputs)]
        warm = torch.cat(heads, 1) / self.temperature
        others = self._tasks(tasks.device) != tasks[:, None]
        # Not -inf, as 0 times it is no number.
        return warm.masked_fill(others, torch.finfo(warm.dtype).min).log_softmax(1)

    def _generative(self, learner: Learner, features: Tensor, inputs: Tensor, known: Tensor, tasks: Tensor) -> Tensor:
        """Return `G` of the docstring, its mean over the batch; `known` are the probabilities of the classes."""
        kind = tree.wide(features)  # hundreds of terms are summed, too many for half precision
        mean, logvar = (each.to(kind) for each in vae.encode(self.generator, features))
        codes = mean + (logvar / 2).exp() * torch.randn_like(mean)
        modes = [replay.table(self.generator, name) for name in ("mean", "logvar")]
        prior = (known.log() + vae.log_normal(codes[:, None], *modes)).logsumexp(1)
        decoded = vae.decode(self.generator, codes, gates=self._gates(learner, known, tasks))
        bound = vae.log_bernoulli(decoded, inputs) + prior - vae.log_normal(codes, mean, logvar)
        return -bound.mean() / inputs[0].numel()

    def _gates(self, learner: Learner, known: Tensor, tasks: Tensor) -> list[Tensor]:
        """Return the gates `[batch, units]` of the decoder's hidden layers, from the code on."""
        if self.gated == 0:
            return []
        shared = learner.scenario is Scenario.DOMAIN
        contexts = F.one_hot(tasks, len(self.outputs)).to(known) if shared else known
        for context in range(len(self.gates[0]) if self.gates else 0, contexts.shape[1]):
            drawn = gating.drawn(learner.seed, context, reversed(self.hidden), self.gated)
            rows = [gate.to(known)[None] for gate in drawn]
            self.gates = [torch.cat(pair) for pair in zip(self.gates, rows, strict=True)] if self.gates else rows
        return [contexts @ table[: contexts.shape[1]] for table in self.gates]

    def _tasks(self, device: torch.device) -> Tensor:
        """Return the task `[classes]` that brought each class."""
        counts = torch.tensor(self.outputs, device=device)
        return torch.arange(len(counts), device=device).repeat_interleave(counts)
