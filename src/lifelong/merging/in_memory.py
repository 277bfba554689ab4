"""Merging what is in memory: one tensor, modules, or dicts of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lifelong.errors import InputError
from lifelong.merging.rule import Array, Rule, Site, Stack, name_of, namespace


@dataclass(frozen=True)
class Held:
    """The numbers of a tensor in memory, of NumPy or PyTorch."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    def read(self, start: int, stop: int) -> Array:
        """Return a copy of the numbers from `start` to `stop` of the flattened tensor, float32 or float64."""
        xp = namespace(self.array)
        piece = xp.reshape(self.array, (-1,))[start:stop]
        return xp.astype(piece, xp.float64 if piece.dtype == xp.float64 else xp.float32, copy=True)


def merge_tensor(rule: Rule, base: Array | None, experts: Sequence[Array], name: str = "") -> Array:
    """Return the merge of one tensor by `rule`, as `Rule.__call__` describes it."""
    rule.check(len(experts))
    if rule.needs_base and base is None:
        raise InputError(f"rule {name_of(rule)} needs a base")
    tensors = [*([] if base is None else [base]), *experts]
    if len({tuple(each.shape) for each in tensors}) > 1:
        raise InputError(f"tensor {name!r} has several shapes: {', '.join(str(tuple(t.shape)) for t in tensors)}")
    first = experts[0]
    xp = namespace(first)
    stack = Stack(name, None if base is None else Held(base), [Held(each) for each in experts])
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
