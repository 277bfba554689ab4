"""Coefficients of task vectors that are learned from samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lifelong.curvature.per_sample import evaluating
from lifelong.errors import InputError
from lifelong.merging.rules.task_arithmetic import TaskArithmetic
from lifelong.tree import Params

# Logits and targets (None where there are none) to a mean over the batch.
Loss = Callable[[Tensor, Tensor | None], Tensor]
Batch = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Learned:
    """Coefficients of each expert's task vector, and how the objective fell.

    Args:
        coefficients: by tensor, one for each expert.
        losses: the objective at each step, before it.
    """

    coefficients: dict[str, tuple[float, ...]]
    losses: list[float]

    def rule(self, name: str) -> TaskArithmetic:
        """Return the rule that merges the tensor `name`."""
        return TaskArithmetic(weight=self.coefficients[name])

    def merged(self, base: Params, experts: Sequence[Params]) -> Params:
        """Return the merge; tensors without coefficients (of integers) are the base's."""
        return {
            name: self.rule(name)(tensor, [each[name] for each in experts], name)
            if name in self.coefficients
            else tensor.clone()
            for name, tensor in base.items()
        }


def entropy(logits: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the mean entropy of the predictions, `-sum_k p_k log p_k`; needs no targets."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).mean()


def adamerging(
    models: nn.Module | Sequence[nn.Module],
    base: Params,
    experts: Sequence[Params],
    batches: Sequence[Sequence[Batch]],
    *,
    per: Literal["task", "layer", "tensor"] = "layer",
    loss: Loss = entropy,
    steps: int = 500,
    learning_rate: float = 1e-3,
    start: float = 0.3,
) -> Learned:
    """Return the coefficients lambda of `theta_0 + sum_t lambda_t tau_t` that minimize a loss on a few samples.

    AdaMerging, Yang et al. 2024, 2310.02575: the entropy of predictions on unlabelled samples of every task, added
    over tasks, minimized by Adam. With targets and another `loss` the same learns from labelled samples.

    Args:
        models: what computes: one module for all tasks, or one for each task with a head of its own; weights that
            `base` does not name are the module's. Evaluated with running statistics; left as they were.
        base: weights of the base (`lifelong.tree.weights`).
        experts: weights of each expert, of the same names.
        batches: of each task, `(inputs, targets or None)`; a step takes one of each, in turn.
        per: one coefficient an expert (task-wise), or one an expert and layer (the module that tensors belong to), or
            one an expert and tensor, as the authors' code.
        loss: to be minimized.
        steps: of Adam.
        learning_rate: of Adam.
        start: of every coefficient.

    Raises:
        InputError: no samples of a task, or numbers of tasks and modules that do not fit.
    """
    modules = [models] * len(batches) if isinstance(models, nn.Module) else list(models)
    if len(modules) != len(batches) or not batches or not all(batches):
        raise InputError(f"give samples of each task: {len(batches)} lists of batches for {len(modules)} modules")
    names = [name for name, tensor in base.items() if tensor.is_floating_point()]
    groups = {name: _group(name, per) for name in names}
    changes = {name: torch.stack([each[name].detach() - base[name].detach() for each in experts]) for name in names}
    rows = {group: row for row, group in enumerate(dict.fromkeys(groups.values()))}
    first = base[names[0]]
    coefficients = torch.full((len(rows), len(experts)), start, device=first.device, requires_grad=True)
    adam = torch.optim.Adam([coefficients], learning_rate)
    losses = []
    for step in range(steps):
        merged = {
            name: base[name].detach()
            + torch.tensordot(coefficients[rows[groups[name]]].to(change.dtype), change, dims=1)
            for name, change in changes.items()
        }
        total = first.new_zeros(())
        for module, samples in zip(modules, batches, strict=True):
            inputs, targets = samples[step % len(samples)]
            with evaluating(module):
                total = total + loss(functional_call(module, merged, (inputs,)), targets)
        adam.zero_grad()
        total.backward()
        adam.step()
        losses.append(float(total.detach()))
    found = {name: tuple(coefficients[rows[groups[name]]].tolist()) for name in names}
    return Learned(found, losses)


def _group(name: str, per: str) -> str:
    return {"task": "", "layer": name.rpartition(".")[0], "tensor": name}[per]
