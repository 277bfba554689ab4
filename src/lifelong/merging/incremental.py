"""Merges in memory to which experts are added one at a time, kept as small as the rule allows.

What is kept is the state of a continual method, so it is a dataclass of trees and numbers. A rule that folds keeps as
many trees as it has parts, Fisher and RegMean keep their sums, a rule of two models keeps its last result; all others
must see every expert again, and keep all of them, in main memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lifelong import tree
from lifelong.errors import InputError
from lifelong.merging.in_memory import merge
from lifelong.merging.linear_algebra import nearest_minimizer
from lifelong.merging.rule import Folding, Rule, name_of
from lifelong.merging.rules.fisher import Fisher
from lifelong.merging.rules.regmean import RegMean
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
    if isinstance(rule, Fisher):
        return Weighed(rule)
    if isinstance(rule, RegMean):
        return Regressed(rule)
    return Paired(rule) if rule.most is not None else Pooled(rule)


@dataclass
class Folded:
    """The state of a rule that folds: the bits of merging all experts at once.

    Args:
        rule: what folds.
        parts: its running arrays, in at least float32.
        count: of the experts in them.
    """

    rule: Folding
    parts: list[Params] = field(default_factory=list)
    count: int = 0

    @torch.no_grad()
    def add(self, base: Params, expert: Params, statistics: Params) -> None:
        if not self.parts:
            self.parts = [_wide_zeros(base) for _ in range(self.rule.parts)]
        for columns in tree.blocks(base, base, expert, *self.parts):
            for start, theta, *state in zip(*columns, strict=True):
                before = state if self.count else []
                folded = self.rule.fold(before, _wide(start), _wide(theta).clone(), self.count)
                for kept, new in zip(state, folded, strict=True):
                    kept.copy_(new)
        self.count += 1

    @torch.no_grad()
    def merged(self, base: Params) -> Params:
        self.rule.check(self.count)
        found = {name: torch.empty_like(tensor) for name, tensor in base.items()}
        for columns in tree.blocks(base, found, base, *self.parts):
            for out, start, *state in zip(*columns, strict=True):
                out.copy_(self.rule.finish(state, _wide(start), self.count))
        return found


@dataclass
class Weighed:
    """Fisher merging as two trees: `A = sum_t F_t` and the average `c = sum_t F_t theta_t / A`.

    Where nothing has mattered yet `c` is the plain average, as the rule has it.
    """

    rule: Fisher
    weight: Params = field(default_factory=dict)
    average: Params = field(default_factory=dict)
    count: int = 0

    @torch.no_grad()
    def add(self, base: Params, expert: Params, statistics: Params) -> None:
        self.count += 1
        if not self.weight:
            self.weight, self.average = _wide_zeros(base), _wide_zeros(base)
        importance = {name: statistics.get(name, torch.ones_like(tensor)) for name, tensor in base.items()}
        for columns in tree.blocks(base, self.weight, self.average, importance, expert, together=2):
            for weight, average, new, theta in zip(*columns, strict=True):
                new = _wide(new).clamp_min(self.rule.floor)
                weight += new
                average.lerp_(_wide(theta), torch.where(weight > 0, new / weight, 1 / self.count))

    def merged(self, base: Params) -> Params:
        return _like(self.average, base)


@dataclass
class Regressed:
    """RegMean as sums: `sum_t G_t`, `sum_t (W_t - W_0) G_t` and the average, in float64 where matrices are solved for.

    Args:
        rule: with its scale of the numbers off the diagonals.
        grams: `[inputs, inputs]` of each linear layer, by the name of its weight.
        products: `[outputs, inputs]`.
        average: of all tensors.
        count: of the experts in them.
    """

    rule: RegMean
    grams: Params = field(default_factory=dict)
    products: Params = field(default_factory=dict)
    average: Params = field(default_factory=dict)
    count: int = 0

    @torch.no_grad()
    def add(self, base: Params, expert: Params, statistics: Params) -> None:
        self.count += 1
        if not self.average:
            self.average = _wide_zeros(base)
        for name, tensor in expert.items():
            self.average[name].lerp_(_wide(tensor), 1 / self.count)
        for name, gram in statistics.items():
            scaled = gram.double() * self.rule.alpha
            scaled.diagonal().copy_(gram.diagonal())
            change = (expert[name].double() - base[name].double()) @ scaled
            self.grams[name] = self.grams[name] + scaled if name in self.grams else scaled
            self.products[name] = self.products[name] + change if name in self.products else change

    @torch.no_grad()
    def merged(self, base: Params) -> Params:
        found = dict(self.average)
        for name, gram in self.grams.items():
            start = _wide(base[name])
            found[name] = start + nearest_minimizer(self.average[name] - start, gram, self.products[name])
        return _like(found, base)


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


def on_cpu(params: Params) -> Params:
    """Return `params` in main memory; a restored checkpoint may have put them on an accelerator."""
    return {name: tensor.cpu() for name, tensor in params.items()}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(tree.wide(tensor))


def _wide_zeros(params: Params) -> Params:
    return {name: torch.zeros_like(tensor, dtype=tree.wide(tensor)) for name, tensor in params.items()}


def _like(params: Params, base: Params) -> Params:
    """Return copies of `params` with the dtypes and devices of `base`."""
    return {name: params[name].detach().to(tensor, copy=True) for name, tensor in base.items()}
