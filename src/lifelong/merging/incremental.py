"""Merges in memory to which experts are added one at a time, kept as small as the rule allows.

What is kept is the state of a continual method, so it is a dataclass of trees and numbers. A rule that folds keeps its
running arrays, a rule of two models its last result; all others must see every expert again, and keep all of them, in
main memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from lifelong import tree
from lifelong.errors import InputError
from lifelong.merging.in_memory import Held, merge
from lifelong.merging.rule import BLOCK, Folding, Rule, Site, Stack, name_of
from lifelong.tree import Params


class Incremental(Protocol):
    """A merge under way. Trees have the names, shapes and dtypes of `base`, which is the same each time."""

    def add(self, base: Params, expert: Params, statistics: Params) -> None:
        """Take in one more expert; `statistics` are those that the rule needs of it, empty where it needs none."""

    def merged(self, base: Params) -> Params:
        """Return the merge of all experts so far, one at least, in tensors of its own."""


def incremental(rule: Rule) -> Incremental:
    """Return the merge by `rule` of no experts yet, of the kind that keeps least.

    Raises:
        InputError: a setting with one number for each expert, as their number is not known.
    """
    for setting in rule.per_expert:
        if isinstance(getattr(rule, setting), tuple):
            raise InputError(
                f"rule {name_of(rule)}: {setting} has a number for each expert, and experts come one at a time: "
                f"give one for all"
            )
    if isinstance(rule, Folding):
        return Folded(rule)
    return Paired(rule) if rule.most is not None else Pooled(rule)


@dataclass
class Folded:
    """The state of a rule that folds: the bits of merging all experts at once.

    Args:
        rule: what folds.
        parts: its running arrays, as it describes them; some only of the tensors that have statistics.
        count: of the experts in them.
    """

    rule: Folding
    parts: list[Params] = field(default_factory=list)
    count: int = 0

    @torch.no_grad()
    def add(self, base: Params, expert: Params, statistics: Params) -> None:
        if not self.parts:
            self.parts = self._room(base, statistics)
        stacks = {name: self._stack(name, base, expert, statistics) for name in base}
        model = self.rule.survey_model([(self.rule, stack) for stack in stacks.values()])
        for name, stack in stacks.items():
            facts = self.rule.survey(replace(stack, model=model))
            for site, block in self._blocks(stack):
                start, theta = _wide(_at(base[name], block)), _wide(_at(expert[name], block)).clone()
                kept = self._kept(name, block)
                known = self.rule.known(facts, 0, theta, site)
                folded = self.rule.fold(kept if self.count else [], start, theta, self.count, site, known)
                for old, new in zip(kept, folded, strict=True):
                    old.copy_(new)
        self.count += 1

    @torch.no_grad()
    def merged(self, base: Params) -> Params:
        self.rule.check(self.count)
        found = {name: tensor.new_empty(tensor.shape) for name, tensor in base.items()}
        for name, out in found.items():
            for _, block in self._blocks(self._stack(name, base)):
                start = _wide(_at(base[name], block))
                _at(out, block).copy_(self.rule.finish(self._kept(name, block), start, self.count))
        return found

    def _room(self, base: Params, statistics: Params) -> list[Params]:
        parts: list[Params] = []
        for name, tensor in base.items():
            wide = "F64" if tree.wide(tensor) is torch.float64 else "F32"
            described = self.rule.kept(tuple(tensor.shape), wide, name in statistics)
            parts += [{} for _ in range(len(described) - len(parts))]
            for part, (kind, shape) in zip(parts, described, strict=False):
                part[name] = tensor.new_zeros(shape, dtype=torch.float64 if kind == "F64" else torch.float32)
        return parts

    def _stack(self, name: str, base: Params, expert: Params | None = None, statistics: Params | None = None) -> Stack:
        """Return one tensor of the base, and of the expert that is added, if any, with its statistic."""
        experts = [] if expert is None else [Held(expert[name])]
        known = [Held(statistics[name])] if statistics and name in statistics else []
        return Stack(name, Held(base[name]), experts, statistics=known, before=self.count)

    def _kept(self, name: str, block: slice | None) -> list[Tensor]:
        return [_at(part[name], block) for part in self.parts if name in part]

    def _blocks(self, stack: Stack) -> Iterator[tuple[Site, slice | None]]:
        """Yield where each block lies: in the model, and in the flattened tensor; None is the tensor as it is."""
        if not self.rule.blockwise:
            yield Site(stack.name), None
            return
        for site in stack.sites():
            yield site, slice(site.start, site.start + BLOCK)


@dataclass
class Paired:
    """A rule of two models: each expert is merged with the result so far, which begins as the base.

    A rule that wants a base beside its two models begins as the first expert.
    """

    rule: Rule
    last: Params = field(default_factory=dict)

    def add(self, base: Params, expert: Params, statistics: Params) -> None:
        if self.rule.least == 2:
            self.last = merge(self.rule, base, [self.last, expert]) if self.last else tree.snapshot(expert)
        else:
            self.last = merge(self.rule, self.last or base, [expert])

    def merged(self, base: Params) -> Params:
        return tree.snapshot(self.last)


@dataclass
class Pooled:
    """All experts, for a rule that must see them at once; they lie in main memory, and are merged there.

    Fewer experts than the rule takes are not merged: the last one is the answer.
    """

    rule: Rule
    experts: list[Params] = field(default_factory=list)

    def add(self, base: Params, expert: Params, statistics: Params) -> None:
        self.experts = [*map(on_cpu, self.experts), on_cpu(tree.snapshot(expert))]

    def merged(self, base: Params) -> Params:
        if len(self.experts) < self.rule.least:
            return _like(self.experts[-1], base)
        return _like(merge(self.rule, on_cpu(base), list(map(on_cpu, self.experts))), base)


def _at(tensor: Tensor, block: slice | None) -> Tensor:
    return tensor if block is None else tensor.reshape(-1)[block]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(tree.wide(tensor))


def on_cpu(params: Params) -> Params:
    """Return `params` in main memory; a restored checkpoint may have put them on an accelerator."""
    return {name: tensor.cpu() for name, tensor in params.items()}


def _like(params: Params, base: Params) -> Params:
    """Return copies of `params` with the dtypes and devices of `base`."""
    return {name: params[name].detach().to(tensor, copy=True) for name, tensor in base.items()}
