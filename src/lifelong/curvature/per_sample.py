"""Sums over samples of squared or absolute per-sample gradients, at about the price of one backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lifelong import tree
from lifelong.curvature import rules
from lifelong.tree import Params

Forward = Callable[[Tensor], Tensor]
Cotangents = Callable[[Tensor, Tensor], Iterable[Tensor]]

# Samples that `vmap(grad)` treats at a time, each with a gradient of its own.
_CHUNK = 16


@dataclass(frozen=True)
class Call:
    """One use of a layer in a forward pass: its input, and the place in the graph where its output arose."""

    layer: nn.Module
    inputs: Tensor
    version: int
    output: GradientEdge


@dataclass(frozen=True)
class Use:
    """A parameter as a layer knows it."""

    layer: nn.Module
    name: str


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
    `vmap(grad)`. That the rules hold is checked against autograd on the first two samples, so a parameter that is used
    in a way of its own (functionally, reparametrised) is found out and treated by `vmap(grad)` too.

    Args:
        model: in evaluation mode meanwhile (no dropout, running statistics), and back.
        forward: inputs `[batch, ...]` to outputs `[batch, outputs]`, by calling `model`.
        batches: `(inputs, targets)`.
        cotangents: outputs and targets to one or several `[batch, outputs]`, the `v`.
        power: 2 for squares, 1 for absolute values.
    """
    live = tree.parameters(model)
    totals = {name: torch.zeros_like(each, dtype=tree.wide(each)) for name, each in live.items()}
    ruled: dict[str, list[Use]] | None = None
    with evaluating(model), torch.enable_grad():
        for inputs, targets in batches:
            if ruled is None:
                ruled = _trusted(model, forward, live, inputs[:2], targets[:2], cotangents)
            _by_rules(forward, ruled, totals, inputs, targets, cotangents, power)
            rest = [name for name in live if name not in ruled]
            if rest:
                _by_vmap(model, forward, rest, totals, inputs, targets, cotangents, power)
    return totals


def _by_rules(
    forward: Forward,
    ruled: dict[str, list[Use]],
    totals: Params,
    inputs: Tensor,
    targets: Tensor,
    cotangents: Cotangents,
    power: int,
) -> None:
    if not ruled:
        return
    layers = {use.layer for uses in ruled.values() for use in uses}
    with _recorded(layers) as calls:
        outputs = forward(inputs)
    for cotangent in cotangents(outputs.detach(), targets):
        gradients = _output_gradients(outputs, cotangent, calls)
        with torch.no_grad():
            _add_moments(ruled, totals, calls, gradients, power)


def _add_moments(
    ruled: dict[str, list[Use]], totals: Params, calls: list[Call], gradients: list[Tensor | None], power: int
) -> None:
    met: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
    for call, gradient in zip(calls, gradients, strict=True):
        if gradient is not None:
            assert call.inputs._version == call.version, "an input was overwritten in place"
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
    size = max(1, (1 << 22) // max(1, getattr(uses[0].layer, uses[0].name).numel()))
    total: Tensor | None = None
    for start in range(0, samples, size):
        parts = [
            rules.RULES[type(u.layer)](u.layer, a[start : start + size], g[start : start + size])[u.name]
            for u, a, g in pairs
        ]
        gradient = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        moment = (gradient.abs() if power == 1 else gradient.square()).sum(0)
        total = moment if total is None else total + moment
    assert total is not None
    return total


def _by_vmap(
    model: nn.Module,
    forward: Forward,
    names: list[str],
    totals: Params,
    inputs: Tensor,
    targets: Tensor,
    cotangents: Cotangents,
    power: int,
) -> None:
    slots = _slots(model)
    still = {name: model.get_parameter(name).detach() for name in slots}
    params = {name: still[name] for name in names}
    with torch.no_grad():
        directions = list(cotangents(forward(inputs), targets))

    def scalar(chosen: Params, sample: Tensor, direction: Tensor) -> Tensor:
        # The other parameters are detached, so that the gradients belong to no graph of their own.
        with _swapped(slots, {**still, **chosen}):
            outputs = forward(sample.unsqueeze(0))
        # Outputs that are masked with -inf have no direction, and 0 * inf would be no number.
        return torch.where(direction != 0, outputs[0] * direction, 0.0).sum()

    gradient = torch.func.grad(scalar)
    over_samples = torch.func.vmap(gradient, in_dims=(None, 0, 0))
    for direction in directions:
        for sample, along in zip(inputs.split(_CHUNK), direction.split(_CHUNK), strict=True):
            try:
                each = over_samples(params, sample, along)
            except (RuntimeError, ValueError):
                # Data-dependent control flow and some in-place writes are beyond vmap: one sample at a time then.
                alone = [gradient(params, s, v) for s, v in zip(sample, along, strict=True)]
                each = {key: torch.stack([one[key] for one in alone]) for key in params}
            for name in names:
                found = each[name]
                totals[name] += (found.abs() if power == 1 else found.square()).sum(0)


def _slots(model: nn.Module) -> dict[str, list[Use]]:
    """Return the places that each trainable parameter is held in, under its first name; each place once.

    `torch.func.functional_call` takes a module that is registered under two names for two, and leaves it broken.
    """
    names = {id(parameter): name for name, parameter in tree.parameters(model).items()}
    slots: dict[str, list[Use]] = {name: [] for name in names.values()}
    for layer in model.modules():
        for own, parameter in layer._parameters.items():
            if id(parameter) in names:
                slots[names[id(parameter)]].append(Use(layer, own))
    return slots


@contextlib.contextmanager
def _swapped(slots: dict[str, list[Use]], chosen: Params) -> Iterator[None]:
    """Let the model compute with the tensors `chosen` in place of its parameters."""
    own = {name: getattr(uses[0].layer, uses[0].name) for name, uses in slots.items()}
    try:
        _put(slots, chosen)
        yield
    finally:
        _put(slots, own)


def _put(slots: dict[str, list[Use]], tensors: Mapping[str, Tensor]) -> None:
    for name, uses in slots.items():
        for use in uses:
            use.layer._parameters[use.name] = tensors[name]  # type: ignore[assignment]


def _trusted(
    model: nn.Module, forward: Forward, live: Params, inputs: Tensor, targets: Tensor, cotangents: Cotangents
) -> dict[str, list[Use]]:
    """Return, for each parameter that rules give rightly on these samples, where it is used."""
    uses = _uses(model, live)
    with _recorded({use.layer for found in uses.values() for use in found}) as calls:
        outputs = forward(inputs)
    direction = torch.stack(list(cotangents(outputs.detach(), targets))).sum(0)
    names = list(live)
    # Sample by sample: a layer whose first dimension is another one of the same length has the right sum all the same.
    true = [
        torch.autograd.grad(row, [live[n] for n in names], along, retain_graph=True, allow_unused=True)
        for row, along in zip(outputs, direction, strict=True)
    ]
    sums = {name: live[name].new_zeros(len(inputs), *live[name].shape) for name in uses}
    by_layer: dict[nn.Module, list[tuple[str, str]]] = {}
    for name, found in uses.items():
        for use in found:
            by_layer.setdefault(use.layer, []).append((name, use.name))
    broken: set[str] = set()
    with torch.no_grad():
        for call, gradient in zip(calls, _output_gradients(outputs, direction, calls), strict=True):
            owned = by_layer[call.layer]
            if call.inputs._version != call.version or len(call.inputs) != len(inputs):
                broken.update(name for name, _ in owned)
            elif gradient is not None:
                each = rules.RULES[type(call.layer)](call.layer, call.inputs, gradient)
                for name, own in owned:
                    sums[name] += each[own]
    return {
        name: uses[name]
        for name, gradients in zip(names, zip(*true, strict=True), strict=True)
        if name in uses
        and name not in broken
        and all(_close(found, gradient) for found, gradient in zip(sums[name], gradients, strict=True))
    }


def _close(found: Tensor, true: Tensor | None) -> bool:
    if true is None:
        return not bool(found.any())
    scale = float(true.abs().max()) + torch.finfo(true.dtype).tiny
    return bool(float((found - true).abs().max()) <= 100 * torch.finfo(true.dtype).eps ** 0.75 * scale)


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


def _output_gradients(outputs: Tensor, cotangent: Tensor, calls: Sequence[Call]) -> list[Tensor | None]:
    edges = [call.output for call in calls]
    if not edges:
        return []
    # Only the paths to the layers' outputs are walked: no gradient of a parameter is computed.
    return list(torch.autograd.grad(outputs, edges, cotangent, retain_graph=True, allow_unused=True))


@contextlib.contextmanager
def _recorded(layers: Iterable[nn.Module]) -> Iterator[list[Call]]:
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
