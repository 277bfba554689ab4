"""From experts to their merge by what they answer, on samples that need no labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lifelong import tree
from lifelong.curvature.per_sample import evaluating
from lifelong.errors import InputError
from lifelong.merging.adaptation import adapt
from lifelong.tree import Params


def distill(
    model: nn.Module,
    weights: Params,
    batches: Sequence[tuple[Tensor, Sequence[Params]]],
    *,
    epochs: int = 1,
    learning_rate: float = 1e-4,
    temperature: float = 2.0,
    keep: float = 0.0,
) -> Params:
    """Return merged `weights` after some steps towards the answers of experts, by Adam.

    The loss is `T^2 KL(1/n sum_i softmax(f_i(x) / T) || softmax(f(x) / T))`, the mean prediction of the experts asked
    (Hinton et al. 2015, 1503.02531, section 2; into an average of weights Lin et al. 2020, 2006.07242, who take the
    mean of logits).

    Args:
        model: gives the computation; its own weights are used where `weights` or an expert names none, and stay.
            Evaluated with running statistics and without dropout.
        weights: of the merge, such as `Pool.merge` returns.
        batches: inputs, and the weights of the experts that are asked about them: of samples of a task its own expert,
            of samples of no task in particular all.
        epochs: passes over them.
        learning_rate: of Adam.
        temperature: T, softens both distributions, above 0.
        keep: pull towards `weights`, as in `adapt`.

    Raises:
        InputError: no samples, none to be asked about them, or weights that the model does not have.
    """
    known = tree.weights(model).keys()
    taught = []
    with torch.no_grad(), evaluating(model):
        for inputs, experts in batches:
            if not experts:
                raise InputError("give at least one expert to be asked about each batch")
            odd = sorted(set().union(*experts) - known)
            if odd:
                raise InputError(f"the model has no tensor {odd[0]!r}, which an expert names")
            answers = [(functional_call(model, expert, (inputs,)) / temperature).softmax(-1) for expert in experts]
            taught.append((inputs, torch.stack(answers).mean(0)))

    def loss(logits: Tensor, wanted: Tensor) -> Tensor:
        return divergence(logits, wanted, temperature)

    return adapt(model, weights, taught, epochs=epochs, learning_rate=learning_rate, keep=keep, loss=loss)


def divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return the mean over the batch of `T^2 KL(wanted || softmax(logits / T))`, for probabilities `wanted`."""
    warm = F.log_softmax(logits / temperature, -1)
    return F.kl_div(warm, wanted, reduction="batchmean") * temperature**2
