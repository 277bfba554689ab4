"""Sums over samples of squared or absolute per-sample gradients, at about the price of one backward pass."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lifelong import tree
from lifelong.curvature import fallback, rules
from lifelong.curvature.fallback import Forward, Use
from lifelong.errors import InputError
from lifelong.tree import Params

Cotangents = Callable[[Tensor, Tensor], Iterable[Tensor]]


@dataclass(frozen=True)
class Call:
    """One use of a layer in a forward pass: its input, and the place in the graph where its output arose."""

    layer: nn.Module
    inputs: Tensor
    version: int
    output: GradientEdge

    def is_of(self, samples: int) -> bool:
        """Whether the input is `[samples, ...]` and still what the layer saw."""
        return self.inputs._version == self.version and len(self.inputs) == samples


def per_sample_moments(
    model: nn.Module,
    forward: Forward,
    batches: Iterable[tuple[Tensor, Tensor]],
    cotangents: Cotangents,
    *,
    power: int = 2,
) -> Params:
    """Return `sum_n sum_v |J_n^T v_n|^power`, element by element, for every trainable parameter of `model`.

    `J_n` is the Jacobian of the n-th sample's outputs, so with `v_n` the gradient of a scalar by the outputs,
    `J_n^T v_n` is the n-th per-sample gradient of that scalar. Exact: for layers with a rule (`rules.py`) from layer
    inputs and output gradients of one backward pass for the whole batch, for all other parameters by chunked
    `vmap(grad)` (`fallback.py`). That the rules hold is checked against autograd on two samples, so a parameter that
    is used in a way of its own (functionally, reparametrised) is found out and treated by `vmap(grad)` too, and so is
    one whose layer stops seeing `[batch, ...]` later on. A use of its own that leaves no trace on those two samples is
    not found out.

    Args:
        model: in evaluation mode meanwhile (no dropout, running statistics), and back; nothing else of it changes.
        forward: inputs `[batch, ...]` to outputs `[batch, outputs]`, by calling `model`.
        batches: `(inputs, targets)`.
        cotangents: detached outputs and targets to one or several `[batch, outputs]`, the `v`; called once a batch.
        power: 2 for squares, 1 for absolute values.

    Returns:
        sums of the trainable parameters' names and shapes, in at least float32; 0 for parameters that are not used.

    Raises:
        InputError: another power.

    Source: the product of squares for linear layers is Goodfellow 2015, 1510.01799; the rest is the chain rule.
    """
    if power not in (1, 2):
        raise InputError(f"power is 1 or 2, not {power!r}")
    live = tree.parameters(model)
    totals: Params = {}
    ruled: dict[str, list[Use]] = {}
    checked = False
    with evaluating(model), torch.enable_grad():
        for inputs, targets in batches:
            if not checked and len(inputs) > 1:
                # With one sample alone, a layer that sees another order of dimensions cannot be told.
                ruled, checked = trusted(model, forward, live, inputs[:2]), True
            # Not before the check, which needs the room.
            totals = totals or wide_zeros(live)
            with recorded({use.layer for uses in ruled.values() for use in uses}) as calls:
                outputs = forward(inputs)
            ruled = still_batched(ruled, calls, len(inputs))
            directions = list(cotangents(outputs.detach(), targets))
            _add_by_rules(ruled, totals, outputs, directions, calls, power)
            rest = [name for name in live if name not in ruled]
            if rest:
                fallback.add_moments(model, forward, rest, totals, inputs, directions, power)
    return totals or wide_zeros(live)


def wide_zeros(live: Params) -> Params:
    """Return zeros for sums over samples, of the shapes of `live`, in at least float32."""
    return {name: torch.zeros_like(each, dtype=tree.wide(each), requires_grad=False) for name, each in live.items()}


def still_batched(ruled: dict[str, list[Use]], calls: list[Call], samples: int) -> dict[str, list[Use]]:
    """Return what of `ruled` is held by layers that each saw `[samples, ...]`, which nothing overwrote afterwards."""
    odd = {call.layer for call in calls if not call.is_of(samples)}
    return {name: uses for name, uses in ruled.items() if not any(use.layer in odd for use in uses)}


def _add_by_rules(
    ruled: dict[str, list[Use]],
    totals: Params,
    outputs: Tensor,
    directions: list[Tensor],
    calls: list[Call],
    power: int,
) -> None:
    layers = {use.layer for uses in ruled.values() for use in uses}
    calls = [call for call in calls if call.layer in layers]
    for direction in directions:
        gradients = output_gradients(outputs, direction, calls)
        with torch.no_grad():
            _add_moments(ruled, totals, calls, gradients, power)


def _add_moments(
    ruled: dict[str, list[Use]], totals: Params, calls: list[Call], gradients: list[Tensor | None], power: int
) -> None:
    met: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
    for call, gradient in zip(calls, gradients, strict=True):
        if gradient is not None:
            met.setdefault(call.layer, []).append((call.inputs, gradient))
    simple: dict[nn.Module, rules.Gradients] = {}
    for name, uses in ruled.items():
        times = sum(len(met.get(use.layer, ())) for use in uses)
        if times == 0:
            continue
        if times > 1:
            totals[name] += _shared(uses, met, power)
            continue
        use = next(use for use in uses if use.layer in met)
        if use.layer not in simple:
            simple[use.layer] = rules.moments(use.layer, *met[use.layer][0], power)
        totals[name] += simple[use.layer][use.name]


def _shared(uses: list[Use], met: dict[nn.Module, list[tuple[Tensor, Tensor]]], power: int) -> Tensor:
    """The moments of a parameter used more than once: a sample's gradients are summed over uses before the power."""
    pairs = [(use, a, g) for use in uses for a, g in met.get(use.layer, ())]
    samples = len(pairs[0][1])
    size = min(rules.chunk(use.layer, g) for use, _, g in pairs)
    total: Tensor | None = None
    for start in range(0, samples, size):
        parts = [
            rules.gradients(u.layer, a[start : start + size], g[start : start + size])[u.name] for u, a, g in pairs
        ]
        gradient = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        moment = (gradient.abs() if power == 1 else gradient.square()).sum(0)
        total = moment if total is None else total + moment
    assert total is not None
    return total


def trusted(model: nn.Module, forward: Forward, live: Params, inputs: Tensor) -> dict[str, list[Use]]:
    """Return, for each parameter that rules give rightly on these samples, where it is used."""
    uses = _uses(model, live)
    with recorded({use.layer for found in uses.values() for use in found}) as calls:
        outputs = forward(inputs)
    if not outputs.requires_grad:
        return {}
    odd = {call.layer for call in calls if not call.is_of(len(inputs))}
    uses = {name: found for name, found in uses.items() if not any(use.layer in odd for use in found)}
    calls = [call for call in calls if call.layer not in odd]
    # Of its own and not the caller's directions, which may draw labels. Unequal, as some outputs sum to a constant.
    ramp = torch.linspace(0.5, 1.5, outputs.shape[1:].numel(), dtype=outputs.dtype, device=outputs.device)
    direction = torch.where(torch.isfinite(outputs), ramp.view(outputs.shape[1:]), 0.0).detach()
    gradients = output_gradients(outputs, direction, calls)
    tolerance = max(_tolerance(outputs.dtype), *(_tolerance(each.dtype) for each in live.values()))
    # Sample by sample: a layer whose first dimension is another one of the same length has the right sum all the same.
    for sample, (row, along) in enumerate(zip(outputs, direction, strict=True)):
        one = slice(sample, sample + 1)
        met = [
            (call.layer, call.inputs[one], g[one]) for call, g in zip(calls, gradients, strict=True) if g is not None
        ]
        true = torch.autograd.grad(row, list(live.values()), along, retain_graph=True, allow_unused=True)
        by_name = dict(zip(live, true, strict=True))
        uses = {name: found for name, found in uses.items() if _holds(found, met, by_name[name], tolerance)}
    return uses


@torch.no_grad()
def _holds(uses: list[Use], met: list[tuple[nn.Module, Tensor, Tensor]], true: Tensor | None, tolerance: float) -> bool:
    """Whether the rules give the gradient `true` of a parameter of one sample, summed over its uses."""
    found = [
        rules.gradients(layer, a, g)[use.name].squeeze(0) for use in uses for layer, a, g in met if layer is use.layer
    ]
    total = torch.stack(found).sum(0) if len(found) > 1 else found[0] if found else None
    if true is None or total is None:
        return not any(each is not None and bool(each.any()) for each in (true, total))
    scale = float(torch.linalg.vector_norm(true, math.inf)) + torch.finfo(true.dtype).tiny
    return float(torch.linalg.vector_norm(total - true, math.inf)) <= tolerance * scale


def _tolerance(dtype: torch.dtype) -> float:
    # 1e-10 in float64 and 6e-4 in float32, as rounding accumulates; in bfloat16 the same power would let all pass.
    return min(100 * math.pow(torch.finfo(dtype).eps, 0.75), 0.05)


def _uses(model: nn.Module, live: Params) -> dict[str, list[Use]]:
    names = {id(parameter): name for name, parameter in live.items()}
    uses: dict[str, list[Use]] = {}
    ruleless: set[str] = set()
    for layer in model.modules():
        for own, parameter in layer.named_parameters(recurse=False):
            name = names.get(id(parameter))
            if name is not None and rules.applies(layer):
                uses.setdefault(name, []).append(Use(layer, own))
            elif name is not None:
                ruleless.add(name)
    return {name: found for name, found in uses.items() if name not in ruleless}


def output_gradients(outputs: Tensor, cotangent: Tensor, calls: Sequence[Call]) -> list[Tensor | None]:
    """Return the gradients of `(outputs * cotangent).sum()` with respect to what came out of each of `calls`."""
    edges = [call.output for call in calls]
    if not edges:
        return []
    # Only the paths to the layers' outputs are walked: no gradient of a parameter is computed.
    return list(torch.autograd.grad(outputs, edges, cotangent, retain_graph=True, allow_unused=True))


@contextlib.contextmanager
def recorded(layers: Iterable[nn.Module]) -> Iterator[list[Call]]:
    """Note the calls of `layers` in the forward passes within, in their order, in the list that it gives."""
    calls: list[Call] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        if output.requires_grad:
            given = inputs[0] if inputs else named["input"]
            # The edge and not the tensor: an activation may yet overwrite the tensor in place.
            calls.append(Call(layer, given.detach(), given._version, get_gradient_edge(output)))

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode, and every module of it back in its own afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
