"""A generative classifier: one density a class, and no class forgets another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lifelong import randomness
from lifelong.errors import InputError
from lifelong.learner import Batch, Learner
from lifelong.methods import replay
from lifelong.methods.method import Method, state
from lifelong.models import vae
from lifelong.settings import setting
from lifelong.streams.task import Scenario, Task
from lifelong.tree import Params


@dataclass
class GenerativeClassifier(Method):
    """Learn a small variational autoencoder for each class, from samples of that class alone.

    The answer is the class of the greatest likelihood, `argmax_y log p(x|y)`, all classes being equally likely
    beforehand, with `log p(x|y)` estimated by importance samples (van de Ven et al. 2021, 2104.10093).
    The network of the run takes no part. Samples of a step train the autoencoders of their classes, by the negative
    evidence lower bound per pixel, and no logits are worked out in training, so the accuracy shown there is void.

    Our deviation: the classes of a task are trained side by side, each on its share of a batch, not one by one.
    """

    family: ClassVar[str] = "generative"
    paper: ClassVar[str] = "2104.10093"
    scenarios: ClassVar[tuple[Scenario, ...]] = (Scenario.CLASS,)
    grows: ClassVar[bool] = True
    alone: ClassVar[str] = "the network that others look at takes no part in it"

    latent: int = setting(5, "numbers in the code of one input", ge=1)
    hidden: tuple[int, ...] = setting((85, 85), "units of the hidden layers, mirrored in the decoder")
    samples: int = setting(50, "importance samples that a likelihood is estimated from", ge=1)
    classes: list[list[int]] = state(list)
    generators: dict[str, Params] = state(dict)

    def before_task(self, learner: Learner, task: Task) -> None:
        inputs = replay.check_inputs(learner, task, "generative-classifier")
        self.classes.append(list(task.classes))
        for label in task.classes:
            seed = randomness.derive(learner.seed, "class", label)
            made = vae.initial(inputs[0].numel(), self.hidden, self.latent, seed=seed, like=inputs)
            self.generators[str(label)] = made

    def trainable(self, learner: Learner) -> Params:
        """Return the parameters of the task's classes; the network is not among them."""
        return {
            f"generators.{label}.{name}": each.requires_grad_()
            for label in self.classes[learner.clock.task]
            for name, each in self.generators[str(label)].items()
        }

    def forward(self, learner: Learner, batch: Batch) -> Tensor:
        return batch.inputs.new_zeros(len(batch.inputs), len(self.generators))

    def loss(self, learner: Learner, batch: Batch, logits: Tensor, loss: Tensor) -> Tensor:
        bounds = [
            vae.bound(self.generators[str(label)], batch.inputs[batch.targets == label]).sum()
            for label in batch.targets.unique().tolist()
        ]
        return -torch.stack(bounds).sum() / batch.inputs.numel()

    def logits(self, learner: Learner, inputs: Tensor, task: int) -> Tensor:
        """Return `log p(x|y)`, `[batch, classes seen]`; the same random numbers for all classes."""
        drawn = randomness.generator(learner.seed, "importance samples")
        noise = torch.randn(self.samples, len(inputs), self.latent, generator=drawn).to(inputs)
        scores = [vae.log_likelihood(generator, inputs, noise) for generator in self.generators.values()]
        return torch.stack(scores, dim=1) if scores else inputs.new_empty(len(inputs), 0)

    def generate(self, label: int, count: int) -> Tensor:
        """Return `count` inputs `[count, pixels]` in 0..1 of the class `label`, drawn by torch's global generator.

        Raises:
            InputError: a class that was never seen.
        """
        if str(label) not in self.generators:
            known = ", ".join(self.generators) or "none"
            raise InputError(f"the generator of class {label} was asked for, and the classes seen are {known}")
        generator = self.generators[str(label)]
        with torch.no_grad():
            like = generator["decoder.0.weight"]
            return vae.draw(generator, torch.randn(count, self.latent, dtype=like.dtype, device=like.device))
