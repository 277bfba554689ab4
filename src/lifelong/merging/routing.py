"""Merging anew for every sample: attention between its feature and prototypes of the tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from lifelong.errors import InputError
from lifelong.tree import Params

Features = Callable[[Tensor], Tensor]


def prototypes(features: Features, tasks: Sequence[Iterable[Tensor]]) -> Tensor:
    """Return the mean direction of the features of each task, `[tasks, features]`.

    Args:
        features: inputs to features `[batch, features]`, such as those of the base.
        tasks: batches of inputs of each task.

    Raises:
        InputError: no samples of a task.
    """
    means = []
    with torch.no_grad():
        for number, batches in enumerate(tasks):
            found = [F.normalize(features(inputs), dim=1) for inputs in batches]
            if not found:
                raise InputError(f"task {number} (from 0) has no samples to make its prototype of")
            means.append(torch.cat(found).mean(0))
    return F.normalize(torch.stack(means), dim=1)


class Routed(nn.Module):
    """A merge for every sample: `theta(x) = theta_0 + sum_t w_t(x) tau_t`.

    `w(x) = softmax_t(<f(x), p_t> / (||f(x)|| ||p_t|| temperature))`: the query is the sample's feature, keys are the
    prototypes of the tasks. The attention rule, conditioned on the input. Ours; no paper defines it. It keeps all task
    vectors, and one weight for each sample costs a network for each sample; `mix = outputs` runs every expert and
    mixes what they answer instead, `mix = best` runs for each sample the expert of most weight alone.

    Args:
        model: what computes; weights that `base` does not name are its own.
        base: parameters of the base.
        experts: those of each expert, of the same names.
        features: inputs to features `[batch, features]`; not trained.
        keys: prototypes, `[experts, features]`.
        temperature: of the softmax; high is the average of the experts, low the one of the nearest prototype.
        mix: weights of the network, outputs, or the best expert alone.
        chunk: samples whose networks are held at a time with `mix = weights`.
    """

    keys: Tensor

    def __init__(
        self,
        model: nn.Module,
        base: Params,
        experts: Sequence[Params],
        features: Features,
        keys: Tensor,
        *,
        temperature: float = 0.1,
        mix: Literal["weights", "outputs", "best"] = "weights",
        chunk: int = 16,
    ) -> None:
        super().__init__()
        if len(keys) != len(experts):
            raise InputError(f"{len(keys)} prototypes are given for {len(experts)} experts")
        if temperature <= 0:
            raise InputError(f"temperature must be above 0, and is {temperature}")
        self.model, self.features = model, features
        self.temperature, self.mix, self.chunk = temperature, mix, chunk
        self.names = list(base)
        self.register_buffer("keys", F.normalize(keys.detach(), dim=1))
        for index, name in enumerate(self.names):
            start = base[name].detach()
            self.register_buffer(f"base_{index}", start.clone())
            self.register_buffer(f"changes_{index}", torch.stack([each[name].detach() - start for each in experts]))

    def attention(self, inputs: Tensor) -> Tensor:
        """Return the weight of each expert for each sample, `[batch, experts]`."""
        with torch.no_grad():
            queries = F.normalize(self.features(inputs), dim=1)
        return (queries @ self.keys.T / self.temperature).softmax(1)

    def forward(self, inputs: Tensor) -> Tensor:
        weights = self.attention(inputs)
        if self.mix == "weights":
            # Other random numbers for each sample where the model draws some, as in a batch.
            each = vmap(self._one, chunk_size=self.chunk, randomness="different")
            merged: Tensor = each(inputs, weights)
            return merged
        everyone = torch.eye(len(self.keys), dtype=weights.dtype, device=weights.device)
        if self.mix == "outputs":
            answers = torch.stack([functional_call(self.model, self._weights(row), (inputs,)) for row in everyone], 1)
            return torch.einsum("be,be...->b...", weights, answers)
        chosen = weights.argmax(1)
        parts = [(row, (chosen == index).nonzero().squeeze(1)) for index, row in enumerate(everyone)]
        found = [
            (rows, functional_call(self.model, self._weights(one), (inputs[rows],))) for one, rows in parts if len(rows)
        ]
        order = torch.cat([rows for rows, _ in found]).argsort()
        return torch.cat([answers for _, answers in found])[order]

    def _one(self, sample: Tensor, weights: Tensor) -> Tensor:
        answer: Tensor = functional_call(self.model, self._weights(weights), (sample.unsqueeze(0),))
        return answer.squeeze(0)

    def _weights(self, weights: Tensor) -> Params:
        merged = {}
        for index, name in enumerate(self.names):
            changes = self.get_buffer(f"changes_{index}")
            # Under autocast the weights come in a narrower format than the task vectors have.
            change = torch.tensordot(weights.to(changes.dtype), changes, dims=1)
            merged[name] = self.get_buffer(f"base_{index}") + change
        return merged
