"""Parameters are a tree: arithmetic on `dict[str, Tensor]`, keyed as `named_parameters()` keys them.

Importance, task vectors, merges and inner loops are all sums and products of such trees. Multi-tensor
(`torch._foreach_*`) kernels do the work, so a whole model costs one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lifelong.errors import InputError

Params: TypeAlias = dict[str, Tensor]

# Numbers in a piece of `blocks`: a MiB in float32.
_PIECE = 2**18


def parameters(module: nn.Module) -> Params:
    """Return the live trainable parameters of `module`; shared weights appear once, under their first name."""
    return {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}


def gradients(params: Params) -> Params:
    """Return the live `.grad` of those of `params` that have one."""
    return {name: tensor.grad for name, tensor in params.items() if tensor.grad is not None}


def all_gradients(params: Params) -> Params:
    """Return a gradient of each of `params`: its live `.grad`, or zeros, of which it does not know (`attach`)."""
    return {name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for name, tensor in params.items()}


def attach(params: Params, gradients: Params) -> None:
    """Make `gradients` the `.grad` of `params`, laid out in memory as these are: fused optimisers mind no strides."""
    for name, gradient in gradients.items():
        fits = gradient.stride() == params[name].stride()
        params[name].grad = gradient if fits else torch.empty_like(params[name]).copy_(gradient)


def weights(module: nn.Module) -> Params:
    """Return the live parameters *and* buffers of `module`: all that its answers depend on."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def under(prefix: str, tree: Params) -> Params:
    """Return the part of `tree` whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tree.items() if name.startswith(prefix)}


def snapshot(tree: Params) -> Params:
    """Return a detached copy of `tree` that later training does not move."""
    return {name: tensor.detach().clone() for name, tensor in tree.items()}


def zeros_like(tree: Params) -> Params:
    """Return a tree of zeros with the names, shapes, dtypes and devices of `tree`."""
    return {name: torch.zeros_like(tensor, requires_grad=False) for name, tensor in tree.items()}


def map(function: Callable[..., Tensor], *trees: Params) -> Params:
    """Return `function` applied leaf by leaf to trees of the same names."""
    return {name: function(*(tree[name] for tree in trees)) for name in _same_names(*trees)}


def add(left: Params, right: Params) -> Params:
    """Return `left + right`, leaf by leaf."""
    names = _same_names(left, right)
    return dict(zip(names, torch._foreach_add(leaves(left, names), leaves(right, names)), strict=True))


def sub(left: Params, right: Params) -> Params:
    """Return `left - right`; with fine-tuned and base weights this is the task vector (2212.04089)."""
    names = _same_names(left, right)
    return dict(zip(names, torch._foreach_sub(leaves(left, names), leaves(right, names)), strict=True))


def mul(left: Params, right: Params) -> Params:
    """Return the element-wise product of two trees."""
    names = _same_names(left, right)
    return dict(zip(names, torch._foreach_mul(leaves(left, names), leaves(right, names)), strict=True))


def scale(tree: Params, factor: float) -> Params:
    """Return `factor * tree`."""
    return dict(zip(tree, torch._foreach_mul(list(tree.values()), factor), strict=True))


def interpolate(start: Params, end: Params, weight: float) -> Params:
    """Return `(1 - weight) * start + weight * end`, leaf by leaf."""
    names = _same_names(start, end)
    return dict(zip(names, torch._foreach_lerp(leaves(start, names), leaves(end, names), weight), strict=True))


def dot(left: Params, right: Params) -> Tensor:
    """Return the inner product of two trees, summed over all their elements in at least float32, as a 0-d tensor."""
    products = [
        (left[name].to(wide(left[name])) * right[name].to(wide(right[name]))).sum() for name in _same_names(left, right)
    ]
    return torch.stack(products).sum() if products else torch.zeros(())


def norm(tree: Params) -> Tensor:
    """Return the Euclidean norm over all elements of `tree`, as a 0-d tensor."""
    return dot(tree, tree).sqrt()


def cosine(left: Params, right: Params) -> Tensor:
    """Return the cosine of the angle between two trees, in -1..1, as a 0-d tensor (0 where one of them is 0)."""
    lengths = norm(left) * norm(right)
    return torch.where(lengths > 0, dot(left, right) / lengths.clamp_min(torch.finfo(lengths.dtype).tiny), 0.0)


def size(tree: Params) -> int:
    """Return how many numbers `tree` holds."""
    return sum(tensor.numel() for tensor in tree.values())


def copy_(target: Params, source: Params) -> None:
    """Write the values of `source` into the tensors of `target`, in place."""
    names = _same_names(target, source)
    if not names:  # which the kernel takes for an error
        return
    with torch.no_grad():
        torch._foreach_copy_(leaves(target, names), leaves(source, names))


def blocks(names: Iterable[str], *trees: Params, together: int = 1) -> Iterator[list[list[Tensor]]]:
    """Yield views of `trees`, each as a list, in the pieces that several operations in a row should treat at a time.

    On the CPU these are at most `_PIECE` numbers of one tensor, so that what lies between two operations stays in the
    cache, and no temporary is so large that the C library hands its memory back, to map it anew at each step. On an
    accelerator all tensors come at once, as there each call is a launch.

    Args:
        names: of the tensors to go through, which every tree has.
        trees: of like shapes and devices; writing to a view writes to the tree.
        together: copies of how many pieces should fit where one does.
    """
    listed = [[tree[name] for tree in trees] for name in names]
    if not listed:
        return
    if listed[0][0].device.type != "cpu":
        yield [list(column) for column in zip(*listed, strict=True)]
        return
    most = max(1, _PIECE // together)
    for tensors in listed:
        size = tensors[0].numel()
        if size <= most or not tensors[0].dim():
            yield [[tensor] for tensor in tensors]
            continue
        rows = max(1, most * len(tensors[0]) // size)
        for pieces in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
            yield [[piece] for piece in pieces]


def leaves(tree: Params, names: Iterable[str]) -> list[Tensor]:
    """Return the tensors of `tree` in the order of `names`."""
    return [tree[name] for name in names]


def wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which sums over `tensor` are kept: its own, but at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _same_names(*trees: Params) -> list[str]:
    names = trees[0].keys()
    for tree in trees[1:]:
        if tree.keys() != names:
            odd = sorted(tree.keys() ^ names)
            raise InputError(f"parameter trees differ: {', '.join(odd[:5])} stand in one and not in the other")
    return list(names)
