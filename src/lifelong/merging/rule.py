"""What a merge rule is: a function of one tensor of the base and of every expert.

A rule computes on the numbers of one tensor, as arrays of NumPy or of PyTorch alike, and knows nothing of files or
modules. Most rules need only the numbers at one place at a time; these run block by block, so that the numbers of a
checkpoint larger than memory pass through the processor's cache once, and no temporary is ever as large as a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from array_api_compat import array_namespace

from lifelong.errors import InputError

# NumPy's or PyTorch's; the same code serves both through the functions that the array API standard gives them.
Array = Any
Item = TypeVar("Item")
T = TypeVar("T")

# Numbers in a block: half a MiB in float32, so that those of several models fit the processor's caches, and calling an
# operation costs little beside it; half or twice as many take longer. Random numbers begin anew at each block, and sums
# over a tensor are sums of sums over blocks: it is part of the result.
BLOCK = 1 << 17


@dataclass(frozen=True)
class Site:
    """Where in a model a block lies: the tensor's name, and the index of the block's first number in it, flattened."""

    name: str = ""
    start: int = 0


class Values(Protocol):
    """The numbers of one tensor of one model, wherever they are."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, stop: int, step: int = 1) -> Array:
        """Return every `step`-th number from `start` to `stop` of the flattened tensor, in new memory, as floats."""
        ...


Mapper = Callable[[Callable[[Any], T], Sequence[Any]], Sequence[T]]


def one_by_one(function: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
    """Apply `function` to each of `items`, in order."""
    return [function(item) for item in items]


@dataclass(frozen=True)
class Stack:
    """One tensor of the base, where there is one, and of every expert: all of one shape.

    Args:
        name: of the tensor.
        base: its numbers in the base.
        experts: its numbers in each expert.
        mapper: applies a function to each of several items, such as sites, and returns what it gave in order, perhaps
            on several cores.
        model: what `Rule.survey_model` found in the whole model.
        statistics: what the rule's `statistic` is of the tensor in each expert; none where none of them has it.
        before: how many experts came before these, for a rule that takes them in one at a time.
    """

    name: str
    base: Values | None
    experts: Sequence[Values]
    mapper: Mapper[Any] = one_by_one
    model: Any = None
    statistics: Sequence[Values] = ()
    before: int = 0

    @property
    def places(self) -> range:
        """Which of all the experts these are, for settings that each has its own of."""
        return range(self.before, self.before + len(self.experts))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.experts[0].shape if self.experts else self.base.shape if self.base is not None else ()

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=object))

    def sites(self) -> list[Site]:
        return [Site(self.name, start) for start in range(0, self.size, BLOCK)]

    def read(self, site: Site) -> tuple[Array | None, list[Array]]:
        """Return the block at `site` of the base and of each expert."""
        return self.between(site.start, min(site.start + BLOCK, self.size))

    def between(self, start: int, stop: int, step: int = 1) -> tuple[Array | None, list[Array]]:
        """Return every `step`-th number from `start` to `stop`, flattened, of the base and of each expert."""
        base = None if self.base is None else self.base.read(start, stop, step)
        return base, [expert.read(start, stop, step) for expert in self.experts]

    def map(self, function: Callable[[Array | None, list[Array], Site], T]) -> Sequence[T]:
        """Return what `function(base, experts, site)` gives for each block, in order."""

        def of_site(site: Site) -> T:
            return function(*self.read(site), site)

        return self.mapper(of_site, self.sites())


@dataclass(frozen=True)
class Rule:
    """A merge rule; its fields are its settings (`lifelong.settings.setting`).

    What users and planners must know of a rule stands in its class variables: whether it needs a base (`needs_base`),
    or makes use of one that is given instead of merging it as one more expert (`takes_base`), how many experts
    (`least`, `most`; None: any number), whether it works block by block (`blockwise`) or on whole tensors, whether the
    order of experts does not matter (`symmetric`), which settings are one number for all experts or one for each
    (`per_expert`), how recipes spell settings that have another name here (`spelled`), which parameters that mergekit's
    method has change nothing here, with the reason (`ignored`), and what it must know of each expert beside its weights
    (`statistic`: the kind that `lifelong.merging.statistics` names; empty: nothing).

    A blockwise rule defines `merge`, and `survey` where it must know something of the whole tensor first, such as a
    norm or a quantile. A rule that cannot be cut into blocks sets `blockwise = False`, and its `merge` gets whole
    tensors in their shapes.
    """

    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    needs_base: ClassVar[bool] = False
    takes_base: ClassVar[bool] = False
    least: ClassVar[int] = 1
    most: ClassVar[int | None] = None
    blockwise: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True
    per_expert: ClassVar[tuple[str, ...]] = ()
    spelled: ClassVar[Mapping[str, str]] = {}
    ignored: ClassVar[Mapping[str, str]] = {}
    statistic: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.takes_base = cls.takes_base or cls.needs_base

    def check(self, experts: int) -> None:
        """Refuse settings that no tensor of `experts` experts could be merged with."""
        if experts < self.least or (self.most is not None and experts > self.most):
            wanted = f"exactly {self.least}" if self.least == self.most else f"at least {self.least}"
            wanted = f"at most {self.most}" if self.most is not None and experts > self.most > self.least else wanted
            raise InputError(f"rule {name_of(self)} takes {wanted} models beside the base, and {experts} are given")
        for setting in self.per_expert:
            values = getattr(self, setting)
            if isinstance(values, tuple) and len(values) != experts:
                raise InputError(
                    f"rule {name_of(self)}: {setting} has {len(values)} numbers for {experts} experts: give one for "
                    f"each, or one for all"
                )

    def survey_model(self, parts: Sequence[tuple[Rule, Stack]]) -> Any:
        """Return what `survey` must know of the whole model; it finds it in `Stack.model`. None by default.

        Args:
            parts: every tensor that a rule of this kind merges from as many experts, with the rule: settings may
                differ from tensor to tensor.
        """
        return None

    def survey(self, stack: Stack) -> Any:
        """Return what `merge` must know of the whole tensor, from passes over its blocks; None by default."""
        return None

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        """Return the merged numbers of one block, or of one tensor where the rule is not blockwise.

        Args:
            base: `[n]`, the same numbers of the base, or None; may be changed.
            experts: `[n]` each; may be changed.
            facts: what `survey` returned for the tensor.
            site: where the block lies.
        """
        raise NotImplementedError

    def each(self, setting: str, experts: int) -> list[Any]:
        """Return a setting expert by expert: its own number for each, or the one that all have."""
        value = getattr(self, setting)
        return list(value) if isinstance(value, tuple) else [value] * experts

    def of_expert(self, setting: str, index: int) -> Any:
        """Return a setting for one expert."""
        value = getattr(self, setting)
        return value[index] if isinstance(value, tuple) else value

    def __call__(
        self, base: Array | None, experts: Sequence[Array], name: str = "", statistics: Sequence[Array] = ()
    ) -> Array:
        """Return the merge of one tensor, in the dtype of the first expert.

        Args:
            base: the tensor of the base, any shape, or None where the rule needs none.
            experts: the same tensor of each expert, of the same shape.
            name: of the tensor; rules that draw random numbers draw others for each name.
            statistics: of the tensor in each expert, for a rule that has a `statistic`.

        Raises:
            InputError: a rule that needs a base without one, too few or too many experts, or settings that do not fit.
        """
        from lifelong.merging.in_memory import merge_tensor

        return merge_tensor(self, base, experts, name, statistics)


@dataclass(frozen=True)
class Folding(Rule):
    """A rule that takes experts in one at a time, in memory that does not grow with their number.

    What is kept between them, the arrays that `kept` describes, can be stored and gone on from, and gives the bits of
    merging all at once: `merge` folds too, or adds in the same order. What `survey` finds it must find of each expert
    alone. Of a rule with a `statistic` that are the experts' statistics, still to be read.
    """

    parts: ClassVar[int] = 1

    def kept(self, shape: tuple[int, ...], dtype: str, informed: bool) -> list[tuple[str, tuple[int, ...]]]:
        """Return the format and the shape of each array of the state; by default `parts` like the tensor.

        Args:
            shape: of the tensor.
            dtype: what arithmetic on it happens in, F32 or F64.
            informed: the tensor has statistics in the experts.
        """
        return [(dtype, shape)] * self.parts

    def fold(
        self, state: list[Array], base: Array | None, expert: Array, index: int, site: Site, known: Any = None
    ) -> list[Array]:
        """Return the state after one more expert.

        Args:
            state: after the experts before it, empty before the first; may be changed.
            base: the block of the base, or None; not to be changed.
            expert: that of the expert; may be changed.
            index: which expert it is, for settings that each has its own of.
            site: where the block lies.
            known: what `known` returned for the expert; may be changed.
        """
        raise NotImplementedError

    def known(self, facts: Any, number: int, expert: Array, site: Site) -> Any:
        """Return what `fold` must know of an expert beside its numbers.

        By default the same block of its statistic (all of it where the rule is not blockwise), or None where the tensor
        has none.

        Args:
            facts: what `survey` returned.
            number: which of the experts that were surveyed it is.
            expert: the block, or the tensor.
            site: where that lies.
        """
        if not facts:
            return None
        values = facts[number]
        if self.blockwise:
            return values.read(site.start, site.start + expert.shape[0])
        found = values.read(0, int(np.prod(values.shape, dtype=object)))
        return namespace(found).reshape(found, values.shape)

    def finish(self, state: list[Array], base: Array | None, experts: int) -> Array:
        """Return the merged block from the state after all `experts`; neither of them is changed."""
        raise NotImplementedError

    def merge(self, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
        return self.finish(self.folded([], base, experts, facts, site), base, len(experts))

    def folded(
        self, state: list[Array], base: Array | None, experts: Iterable[Array], facts: Any, site: Site, before: int = 0
    ) -> list[Array]:
        """Return the state after `experts`, the first of which is number `before`; arguments as for `merge`.

        One that is read when its turn comes is in the processor's cache when it is folded.
        """
        for number, expert in enumerate(experts):
            known = self.known(facts, number, expert, site)
            state = self.fold(state, base, expert, before + number, site, known)
        return state


def name_of(rule: Rule | Callable[..., Array]) -> str:
    """Return the name by which users know a rule, or that of a function."""
    from lifelong.merging.rules import RULES

    known: dict[type, str] = {kind: name for name, kind in RULES.items()}
    return known.get(type(rule)) or str(getattr(rule, "__name__", type(rule).__name__))


def namespace(array: Array) -> Any:
    """Return the functions of the array's library: `abs`, `sign`, `where` ... as the array API standard names them."""
    kind = type(array)
    if kind not in _NAMESPACES:
        # NumPy speaks the standard itself from 2.1 on; what stands in for that before imports for 50 ms.
        _NAMESPACES[kind] = np if kind is np.ndarray and hasattr(np, "astype") else array_namespace(array)
    return _NAMESPACES[kind]


def as_numpy(array: Array) -> np.ndarray[Any, Any]:
    """Return the numbers of `array` as NumPy has them, in the same memory where that is possible."""
    return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()


def like(numbers: np.ndarray[Any, Any], array: Array) -> Array:
    """Return `numbers` in the library, and on the device, of `array`."""
    return numbers if isinstance(array, np.ndarray) else namespace(array).asarray(numbers, device=array.device)


def choose(mask: Array, chosen: Array, other: Array) -> Array:
    """Return `chosen` where `mask` is true, else `other`; all of one shape, the latter two of one format.

    NumPy's `where` takes a branch for every number, which costs five times as much where no pattern predicts it.

    Args:
        mask: true or false for each number.
        chosen: what it chooses; it may be changed.
        other: what it does not choose.
    """
    if not isinstance(mask, np.ndarray):
        return namespace(mask).where(mask, chosen, other)
    bits = np.dtype(f"i{chosen.itemsize}")
    # All bits set where it is true.
    picked, others = np.negative(mask.view(np.int8)).astype(bits), other.view(bits)
    result = chosen.view(bits)
    result ^= others
    result &= picked
    result ^= others
    return chosen


# Asking the array for its library takes longer than many an operation on a block does.
_NAMESPACES: dict[type, Any] = {}
