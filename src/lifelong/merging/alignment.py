"""Permutation alignment: networks trained from other beginnings, their hidden units put in one order before a merge.

The units of a hidden layer have no order: a permutation of them, undone in the next layer, gives the same function.
Weight matching (Git Re-Basin; Ainsworth, Hayase & Srinivasa 2023, 2209.04836, section 3.2) looks for the permutation
that brings one network's weights closest to another's. Then any rule merges the aligned networks.

ZipIt (Stoica et al. 2023, 2305.03053) is not here: it also joins units of one network with each other, and its partial
zipping leaves several heads behind the last zipped layer. The result is a network of another shape, and not a tensor
for each tensor of the experts, which is what a rule makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lifelong.errors import InputError
from lifelong.merging.rule import Array, namespace

if TYPE_CHECKING:
    from torch import nn

Tree = Mapping[str, Array]
# Of each tensor, by axis: the name of the permutation that acts on it, or None. An axis may be a multiple of the
# permutation's length: each unit then owns as many numbers in a row, as after flattening the channels of an image.
Specification = Mapping[str, tuple[str | None, ...]]
Permutations = dict[str, np.ndarray[Any, Any]]


def align(specification: Specification, reference: Tree, model: Tree, *, seed: int = 0) -> dict[str, Array]:
    """Return `model` with its hidden units in the order in which they are most like those of `reference`.

    Args:
        specification: which permutation acts where; `sequential` makes it for plain networks.
        reference: a network's tensors.
        model: those of a network of the same shapes; tensors that the specification lacks stay as they are.
        seed: of the order in which layers are visited.

    Raises:
        InputError: tensors that are missing, or shapes that do not fit the specification.
    """
    return permuted(specification, model, weight_matching(specification, reference, model, seed=seed))


def weight_matching(specification: Specification, reference: Tree, model: Tree, *, seed: int = 0) -> Permutations:
    """Return permutations under which `sum_k <reference_k, permuted model_k>` cannot be raised one at a time.

    Coordinate ascent: with all others held, the best permutation of one layer is a linear assignment problem. It ends
    at a local optimum, which depends on the order of layers. Where a permutation acts on two axes of one tensor, each
    is solved with the other held, and the step taken only if it gains.

    Returns:
        of each permutation, which unit of `model` takes the place of each unit.
    """
    from scipy.optimize import linear_sum_assignment

    left = {name: _float64(name, reference) for name in specification}
    right = {name: _float64(name, model) for name in specification}
    uses = _uses(specification, left, right)
    found: Permutations = {name: np.arange(_units(name, uses, left)) for name in uses}
    random = np.random.default_rng(seed)
    order, improved = list(uses), True
    while improved:
        improved = False
        for index in random.permutation(len(order)):
            name = order[index]
            gains = _gains(name, uses[name], specification, left, right, found)
            _, best = linear_sum_assignment(gains, maximize=True)
            tensors = {tensor: specification[tensor] for tensor, _ in uses[name]}
            before, after = (_likeness(tensors, left, right, found | each) for each in ({}, {name: best}))
            # More than the rounding of sums, or equal assignments would take turns for ever.
            if after - before > 1e-10 * max(1.0, abs(after)):
                found[name], improved = best, True
    return found


def permuted(specification: Specification, model: Tree, permutations: Permutations) -> dict[str, Array]:
    """Return `model` with every axis in the order that the permutation on it says."""
    moved = dict(model)
    for name, axes in specification.items():
        for axis, permutation in enumerate(axes):
            if permutation is not None:
                array = moved[name]
                order = _spread(permutations[permutation], array.shape[axis])
                xp = namespace(array)
                moved[name] = xp.take(array, xp.asarray(order, device=array.device), axis=axis)
    return moved


def sequential(module: nn.Module) -> Specification:
    """Return the specification of an `nn.Sequential` (nested ones too) of layers whose hidden units have no order.

    Raises:
        InputError: a layer for which this is not known; give a specification of your own.
    """
    from torch import nn

    weighted = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = _leaves(module, "")
    last = max((index for index, (_, layer) in enumerate(layers) if isinstance(layer, weighted)), default=0)
    specification: dict[str, tuple[str | None, ...]] = {}
    units: str | None = None
    for index, (name, layer) in enumerate(layers):
        if isinstance(layer, weighted):
            if getattr(layer, "groups", 1) != 1:
                raise InputError(f"{name} is a grouped convolution: give a specification of your own")
            before, units = units, None if index == last else name
            rest = (None,) * (layer.weight.dim() - 2)
            specification[f"{name}.weight"] = (units, before, *rest)
            if layer.bias is not None:
                specification[f"{name}.bias"] = (units,)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
            own = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
            if any(tensor.dim() > 1 for tensor in own.values()):
                raise InputError(f"{name} normalises over several axes: give a specification of your own")
            specification |= {f"{name}.{key}": (units,) for key, tensor in own.items() if tensor.dim()}
        elif not isinstance(layer, _unordered()):
            raise InputError(
                f"{name or 'the network'} is a {type(layer).__name__}, which may depend on the order of units: give a "
                f"specification of your own"
            )
    return specification


def _leaves(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    from torch import nn

    if not isinstance(module, nn.Sequential):
        return [(name, module)]
    inner = [_leaves(child, f"{name}.{key}".lstrip(".")) for key, child in module.named_children()]
    return [leaf for leaves in inner for leaf in leaves]


def _unordered() -> tuple[type[nn.Module], ...]:
    """Return layers without weights that do to every unit what they do to the others."""
    from torch import nn

    from lifelong.models.networks import ChannelsLast

    activations = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus)
    pools = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
    return (*activations, *pools, nn.Flatten, nn.Identity, ChannelsLast, nn.Dropout, nn.Dropout1d, nn.Dropout2d)


def _uses(specification: Specification, left: Tree, right: Tree) -> dict[str, list[tuple[str, int]]]:
    """Return where each permutation acts: tensors and axes."""
    uses: dict[str, list[tuple[str, int]]] = {}
    for name, axes in specification.items():
        if left[name].shape != right[name].shape or len(axes) != left[name].ndim:
            raise InputError(
                f"tensor {name!r} is {list(left[name].shape)} and {list(right[name].shape)}, and the specification has "
                f"{len(axes)} axes"
            )
        for axis, permutation in enumerate(axes):
            if permutation is not None:
                uses.setdefault(permutation, []).append((name, axis))
    return uses


def _units(permutation: str, uses: Mapping[str, list[tuple[str, int]]], tensors: Tree) -> int:
    sizes = [tensors[name].shape[axis] for name, axis in uses[permutation]]
    units = int(min(sizes))
    if any(size % units for size in sizes):
        raise InputError(f"permutation {permutation!r} acts on axes of {sizes} numbers, which no unit size divides")
    return units


def _gains(
    name: str,
    places: list[tuple[str, int]],
    specification: Specification,
    left: Tree,
    right: Tree,
    found: Permutations,
) -> np.ndarray[Any, Any]:
    """Return what it gives to put unit j of the model in place i: the inner products of their weights."""
    units = len(found[name])
    gains = np.zeros((units, units))
    for tensor, axis in places:
        others = tuple(each if own != axis else None for own, each in enumerate(specification[tensor]))
        moved = permuted({tensor: others}, {tensor: right[tensor]}, found)[tensor]
        gains += _by_unit(left[tensor], axis, units) @ _by_unit(moved, axis, units).T
    return gains


def _likeness(specification: Specification, left: Tree, right: Tree, found: Permutations) -> float:
    moved = permuted(specification, {name: right[name] for name in specification}, found)
    return sum(float((left[name] * moved[name]).sum()) for name in specification)


def _by_unit(array: Array, axis: int, units: int) -> Array:
    return np.moveaxis(array, axis, 0).reshape(units, -1)


def _spread(order: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Return the order of single numbers, of which each unit has as many in a row."""
    repeat = size // len(order)
    return (order[:, None] * repeat + np.arange(repeat)).reshape(-1)


def _float64(name: str, tensors: Tree) -> np.ndarray[Any, Any]:
    if name not in tensors:
        raise InputError(f"the specification names a tensor {name!r}, which the model does not have")
    array = tensors[name]
    return np.asarray(array if isinstance(array, np.ndarray) else array.detach().cpu().double().numpy(), np.float64)
