"""Statistics of experts, from their modules and a few samples; RegMean++, whose statistics need the merge under way.

`lifelong.curvature.fisher` gives the importances of Fisher merging; `gram` the Gram matrices of RegMean.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lifelong import tree
from lifelong.curvature.per_sample import evaluating
from lifelong.errors import InputError
from lifelong.merging.rules.regmean import RegMean, mean
from lifelong.merging.statistics import path_of
from lifelong.tree import Params


def save(model: Path, kind: str, statistics: Params) -> Path:
    """Write the statistics of the model at `model` beside its weights; returns the path."""
    path = path_of(model, kind)
    path.parent.mkdir(exist_ok=True)
    written = path.with_name(f"{path.name}.partial")
    save_file({name: each.detach().contiguous().cpu() for name, each in statistics.items()}, written)
    return written.replace(path)


def gram(model: nn.Module, batches: Iterable[Tensor]) -> Params:
    """Return the mean of `x x^T` over the inputs x of each linear layer, by the name of its weight.

    Jin et al. 2023, 2212.09849, have the sum; the mean gives experts with unlike numbers of samples the same say.

    Args:
        model: evaluated with running statistics and without dropout; left as it was.
        batches: inputs of the expert's own task; a few hundred samples are enough.

    Returns:
        `[inputs, inputs]` of each layer that was called, in at least float32.

    Raises:
        InputError: no samples, or no linear layer that they reach.
    """
    sums: Params = {}
    counts: dict[str, int] = {}
    with evaluating(model), torch.no_grad(), _watched(model, sums, counts):
        for inputs in batches:
            model(inputs)
    if not sums:
        raise InputError("no Gram matrices: give at least one batch, and a model with linear layers")
    return {name: total / counts[name] for name, total in sums.items()}


@contextlib.contextmanager
def _watched(model: nn.Module, sums: Params, counts: dict[str, int]) -> Iterator[None]:
    """While this lasts, add up the outer products of the inputs of every linear layer, and their number."""

    def hook(name: str) -> object:
        def add(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].detach().flatten(0, -2)
            rows = rows.to(tree.wide(rows))
            sums[name] = sums.get(name, 0) + rows.T @ rows
            counts[name] = counts.get(name, 0) + len(rows)

        return add

    linear = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_pre_hook(hook(_weight(name))) for name, layer in linear]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def regmean_plus_plus(
    model: nn.Module,
    experts: Sequence[Params],
    batches: Sequence[Sequence[Tensor]],
    *,
    blocks: Sequence[str] | None = None,
    alpha: float = 0.9,
) -> Params:
    """Return the RegMean++ merge (Nguyen et al. 2025, 2508.03121): RegMean, block by block from the input on.

    The Gram matrices of a block are of what it gets from the blocks before as they are merged, not from those of its
    expert: they describe the inputs that the merged block will have. Within a block they are the expert's own.

    Args:
        model: any weights; gives the computation, and is left as it was.
        experts: weights of each expert, as `lifelong.tree.weights` gives them; what they lack is the model's.
        batches: inputs of each expert's own task.
        blocks: names of modules that are merged in one step, in the order in which they compute, such as the blocks of
            a transformer; by default every linear layer is one.
        alpha: scale of the Gram matrices off their diagonals, 0 to 1.

    Returns:
        merged weights; tensors outside linear layers are averaged.

    Raises:
        InputError: batches of other experts than are given, or a block that the model does not have.
    """
    if len(batches) != len(experts):
        raise InputError(f"{len(batches)} lists of batches are given for {len(experts)} experts")
    merged = {name: _average([expert[name] for expert in experts]) for name in experts[0]}
    rule = RegMean(alpha=alpha)
    for block in blocks if blocks is not None else _linear_layers(model, batches[0][0]):
        inside = [name for name in merged if name.startswith(f"{block}.")]
        if not inside:
            raise InputError(f"the model has no block {block!r} with weights")
        grams = []
        for expert, samples in zip(experts, batches, strict=True):
            with holding(model, merged | {name: expert[name] for name in inside}):
                grams.append(gram(model, samples))
        for name in inside:
            if name in grams[0]:
                merged[name] = rule(None, [e[name] for e in experts], name, [each[name] for each in grams])
    return merged


def _average(tensors: list[Tensor]) -> Tensor:
    average: Tensor = mean(tensors) if tensors[0].is_floating_point() else tensors[0].clone()
    return average


def _linear_layers(model: nn.Module, inputs: Tensor) -> list[str]:
    """Return the names of the linear layers in the order in which they are first called."""
    sums: Params = {}
    with evaluating(model), torch.no_grad(), _watched(model, sums, {}):
        model(inputs)
    return [name.removesuffix("weight").rstrip(".") for name in sums]


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


@contextlib.contextmanager
def holding(model: nn.Module, weights: Params) -> Iterator[None]:
    """While this lasts, `model` has the given `weights`; others are as they are."""
    live = {name: each for name, each in tree.weights(model).items() if name in weights}
    kept = tree.snapshot(live)
    tree.copy_(live, weights)
    try:
        yield
    finally:
        tree.copy_(live, kept)
