"""Merging what is in memory: one tensor, modules, or dicts of tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from lifelong import settings
from lifelong.errors import InputError, unknown
from lifelong.merging.rule import Array, Rule, Site, Stack, name_of, namespace
from lifelong.merging.statistics import of_tensors

if TYPE_CHECKING:
    from torch import nn

Tree = Mapping[str, Array]
Function = Callable[[Array | None, Sequence[Array]], Array]
Model = TypeVar("Model", bound="nn.Module | Tree")


def merge(
    rule: str | Rule | Function,
    base: Model | None,
    experts: Sequence[Model],
    *,
    statistics: Sequence[Tree] | None = None,
    **values: Any,
) -> Model:
    """Return one model out of several, of the kind that was given.

    Args:
        rule: a name (`lifelong list rules`), a rule, or a function that makes a tensor of the merge out of the same
            tensor of the base (or None) and of each expert.
        base: the model that the experts were fine-tuned from, or None: a module, or a dict of tensors.
        experts: models of the same names and shapes, each as `base` is.
        statistics: of each expert, for a rule that needs them: importances for `fisher`, Gram matrices for `regmean`
            (`lifelong.merging.collect`).
        values: settings of a rule given by name, such as `density=0.2`, or `weight=(1.0, 0.5)` for one an expert.

    Returns:
        A dict of tensors, or a copy of the base (of the first expert) with merged parameters and buffers. Tensors of
        integers are those of the base. Statistics of batch normalisation are merged as weights are, and do not describe
        what the merged network computes: estimate them anew.

    Raises:
        InputError: an unknown rule or setting, models of different tensors (all are named), or no base for a rule that
            needs one, or no statistics for one that needs these.
    """
    if not experts:
        raise InputError("give at least one model to merge")
    chosen = _chosen(rule, values)
    template = experts[0] if base is None else base
    trees = [_tree(each) for each in experts]
    origin = None if base is None else _tree(base)
    _check_names(trees if origin is None else [origin, *trees])
    known = of_tensors(chosen, statistics, len(experts))
    tensors = {
        name: (None if origin is None else origin[name], [tree[name] for tree in trees], known(name))
        for name in (trees[0] if origin is None else origin)
    }
    facts = _surveyed(chosen, tensors) if isinstance(chosen, Rule) else None
    merged = {name: _merged(chosen, *operands, name, facts) for name, operands in tensors.items()}
    if isinstance(template, Mapping):
        return merged  # type: ignore[return-value]
    result = copy.deepcopy(template)
    result.load_state_dict(merged)
    return result


def _chosen(rule: str | Rule | Function, values: Mapping[str, Any]) -> Rule | Function:
    from lifelong.merging.rules import RULES

    if isinstance(rule, str):
        if rule not in RULES:
            raise unknown("merge rule", rule, RULES)
        return settings.build(RULES[rule], values, f"merge rule {rule}")
    if values:
        raise InputError(f"settings ({', '.join(values)}) go with a rule given by name; this one has its own")
    return rule


def _tree(model: nn.Module | Tree) -> Tree:
    return model if isinstance(model, Mapping) else {name: each.detach() for name, each in model.state_dict().items()}


def _check_names(trees: Sequence[Tree]) -> None:
    first = set(trees[0])
    odd = sorted(set().union(*(first ^ set(tree) for tree in trees[1:])))
    if odd:
        raise InputError(f"the models have different tensors ({len(odd)}): {', '.join(odd)}")


def _surveyed(rule: Rule, tensors: Mapping[str, tuple[Array | None, list[Array], list[Array]]]) -> Any:
    """Return what `rule` must know of the whole model."""
    stacks = [
        _stack(rule, base, experts, name, known)
        for name, (base, experts, known) in tensors.items()
        if _fractions(experts[0] if base is None else base)
    ]
    return rule.survey_model([(rule, stack) for stack in stacks])


def _merged(
    rule: Rule | Function,
    base: Array | None,
    experts: Sequence[Array],
    statistics: Sequence[Array],
    name: str,
    facts: Any,
) -> Array:
    first = experts[0] if base is None else base
    if not _fractions(first):
        return first
    if isinstance(rule, Rule):
        return _of_stack(rule, replace(_stack(rule, base, experts, name, statistics), model=facts), experts[0])
    return rule(base, experts)


def _fractions(array: Array) -> bool:
    return bool(namespace(array).isdtype(array.dtype, "real floating"))


@dataclass(frozen=True)
class Held:
    """The numbers of a tensor in memory, of NumPy or PyTorch."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def read(self, start: int, stop: int, step: int = 1) -> Array:
        """Return a copy of every `step`-th number from `start` to `stop` of the flat tensor, float32 or float64."""
        xp = namespace(self.array)
        piece = xp.reshape(self.array, (-1,))[start:stop:step]
        return xp.astype(piece, xp.float64 if piece.dtype == xp.float64 else xp.float32, copy=True)


def merge_tensor(
    rule: Rule, base: Array | None, experts: Sequence[Array], name: str = "", statistics: Sequence[Array] = ()
) -> Array:
    """Return the merge of one tensor by `rule`, as `Rule.__call__` describes it."""
    stack = _stack(rule, base, experts, name, statistics)
    return _of_stack(rule, replace(stack, model=rule.survey_model([(rule, stack)])), experts[0])


def _stack(rule: Rule, base: Array | None, experts: Sequence[Array], name: str, statistics: Sequence[Array]) -> Stack:
    """Return the operands of `rule` for one tensor, checked."""
    rule.check(len(experts))
    if rule.needs_base and base is None:
        raise InputError(f"rule {name_of(rule)} needs a base")
    tensors = [*([] if base is None else [base]), *experts]
    if len({tuple(each.shape) for each in tensors}) > 1:
        raise InputError(f"tensor {name!r} has several shapes: {', '.join(str(tuple(t.shape)) for t in tensors)}")
    used = base if rule.takes_base else None
    origin = None if used is None else Held(used)
    known = [Held(each) for each in statistics]
    return Stack(name, origin, [Held(each) for each in experts], statistics=known)


def _of_stack(rule: Rule, stack: Stack, first: Array) -> Array:
    """Return the merged tensor, in the dtype of `first`."""
    xp = namespace(first)
    merged = merged_blocks(rule, stack)
    whole = xp.concat(merged) if merged else xp.reshape(first, (-1,))
    return xp.astype(xp.reshape(whole, tuple(first.shape)), first.dtype)


def merged_blocks(rule: Rule, stack: Stack) -> list[Array]:
    """Return the merged numbers of a tensor, block by block where the rule can, else in one."""
    if stack.size == 0:
        return []
    facts = rule.survey(stack)
    if rule.blockwise:
        return list(stack.map(lambda base, experts, site: rule.merge(base, experts, facts, site)))
    base, experts = whole(stack)
    merged = rule.merge(base, experts, facts, Site(stack.name))
    return [namespace(merged).reshape(merged, (-1,))]


def whole(stack: Stack) -> tuple[Array | None, list[Array]]:
    """Return the whole tensor of the base and of each expert, in its shape."""
    shape, size = stack.shape, stack.size
    read = [None if each is None else each.read(0, size) for each in (stack.base, *stack.experts)]
    shaped = [None if each is None else namespace(each).reshape(each, shape) for each in read]
    return shaped[0], shaped[1:]
