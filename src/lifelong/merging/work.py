"""What one worker does at a time: survey a tensor, merge some of its blocks, and write them in their place."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from lifelong.errors import InputError
from lifelong.merging.checkpoint import Mapped
from lifelong.merging.formats import DTYPES, floating, nonfinite, working
from lifelong.merging.in_memory import whole
from lifelong.merging.output import Output
from lifelong.merging.plan import Job, Source
from lifelong.merging.rule import BLOCK, Array, Folding, Rule, Site, Stack, Values

# Numbers that one worker merges at a time: some milliseconds of work, beside which handing it over costs nothing.
PART = 16 * BLOCK
# A tensor up to this size is surveyed and merged by one worker, while much of it is still in the processor's cache.
_WHOLE = 4 * PART
# Bytes of what a survey found that may travel to other workers with every part.
_LIGHT = 1 << 16


class NonfiniteError(InputError):
    """An input holds numbers that are infinite or not a number."""


@dataclass(frozen=True)
class Task:
    """Some numbers of one tensor, to be merged.

    Args:
        job: index of the tensor's job.
        start: first number.
        stop: the number behind the last.
        surveyed: there is nothing left to survey; else it is done first, on the whole tensor.
        facts: what was found.
        seen: of each input, whether all of it has been checked and fingerprinted before.
    """

    job: int
    start: int
    stop: int
    surveyed: bool = True
    facts: Any = None
    seen: Sequence[bool] = ()


@dataclass(frozen=True)
class Done:
    """What came of a task.

    Args:
        task: which.
        merged: its numbers are written; else it was only surveyed, and `facts` go to those who merge its parts.
        facts: what the survey found.
        read: of each input, the digests of the blocks that were read for the first time, by their first number.
        written: of each tensor that was written, the digests of its blocks.
    """

    task: Task
    merged: bool
    facts: Any
    read: Sequence[Mapping[int, int]]
    written: Mapping[str, Mapping[int, int]]


def tasks(index: int, job: Job) -> list[Task]:
    """Return what is to be done for a job at first: its parts, or one task that surveys it."""
    rule, size = job.rule, math.prod(job.shape)
    if rule is not None and size > 0 and not (rule.blockwise and type(rule).survey is Rule.survey):
        return [Task(index, 0, size, surveyed=False)]
    return parts(index, size)


def divided(job: Job) -> bool:
    """Return whether a tensor is surveyed by one worker and merged by several."""
    return (
        job.rule is not None
        and job.rule.blockwise
        and not job.statistics
        and type(job.rule).survey is not Rule.survey
        and math.prod(job.shape) > _WHOLE
    )


def parts(index: int, size: int, facts: Any = None, seen: Sequence[bool] = ()) -> list[Task]:
    """Return the parts of a tensor of `size` numbers about which nothing is left to find out."""
    return [Task(index, start, min(start + PART, size), True, facts, seen) for start in range(0, size, PART)]


@dataclass
class Watched:
    """Values that are checked and fingerprinted as they are read for the first time.

    Args:
        source: what is read.
        allow_nonfinite: infinities and NaN pass.
        seen: it was all read before.
        digests: of each block that has been read.
    """

    source: Source
    allow_nonfinite: bool
    seen: bool = False
    digests: dict[int, int] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.values.shape

    def read(self, start: int, stop: int, step: int = 1) -> Any:
        values = self.source.values
        if not self.seen:
            size = math.prod(values.shape)
            for first in range(start - start % BLOCK, stop, BLOCK):
                if first not in self.digests:
                    self._look(first, min(first + BLOCK, size))
        return values.read(start, stop, step)

    def _look(self, start: int, stop: int) -> None:
        values = self.source.values
        # What is on disk as it is there, which is less to look at; what is made of several files as it was made.
        raw = values.raw[start:stop] if isinstance(values, Mapped) else np.asarray(values.read(start, stop), np.float32)
        if not self.allow_nonfinite and nonfinite(raw, values.dtype if isinstance(values, Mapped) else "F32"):
            raise NonfiniteError(f"{self.source.model}: {self.source.name}")
        self.digests[start] = xxh3_64_intdigest(raw.view(np.uint8).data)


@dataclass(frozen=True)
class Work:
    """What workers know of the merge.

    Args:
        jobs: of the plan.
        output: where the result goes.
        allow_nonfinite: infinities and NaN in inputs pass.
        keep_running: the state of rules that take experts in one at a time is stored beside the result.
        facts: what rules know of the whole model, by the name of the tensor.
        device: where PyTorch computes rules that can be computed `elsewhere`; None for NumPy.
    """

    jobs: Sequence[Job]
    output: Output
    allow_nonfinite: bool
    keep_running: bool
    facts: Mapping[str, Any]
    device: str | None = None

    def do(self, task: Task) -> Done:
        """Do one task.

        Raises:
            NonfiniteError: an input has infinities or NaN.
            InputError: a number that the result's format cannot hold.
        """
        return _Running(self, task).run()


class _Running:
    """A task under way."""

    def __init__(self, work: Work, task: Task) -> None:
        self.work, self.task, self.job = work, task, work.jobs[task.job]
        job = self.job
        seen = task.seen or [False] * (len(job.sources) + len(job.statistics))
        every = zip((*job.sources, *job.statistics), seen, strict=True)
        self.watched = [Watched(source, work.allow_nonfinite, each) for source, each in every]
        origin = 0 if job.base is None else 1
        base: Values | None = self.watched[0] if origin else None
        experts: list[Values] = [*self.watched[origin : origin + len(job.experts)]]
        statistics: list[Values] = [*self.watched[origin + len(job.experts) :]]
        model = work.facts.get(job.name)
        self.stack = Stack(job.name, base, experts, model=model, statistics=statistics, before=job.before)
        self.facts = task.facts
        self.written: dict[str, dict[int, int]] = {}

    def run(self) -> Done:
        task, rule = self.task, self.job.rule
        if rule is not None and not task.surveyed:
            self.facts = rule.survey(self.stack)
            if divided(self.job) and len(pickle.dumps(self.facts)) <= _LIGHT:
                return self._done(merged=False)
        if rule is not None and not rule.blockwise:
            self._whole(rule)
        else:
            for start in range(task.start, task.stop, BLOCK):
                self._block(Site(self.job.name, start))
        return self._done(merged=True)

    def _done(self, merged: bool) -> Done:
        read = [each.digests for each in self.watched]
        return Done(self.task, merged, None if merged else self.facts, read, self.written)

    def _block(self, site: Site) -> None:
        rule = self.job.rule
        if rule is None:
            self._write(site.start, self._copied(site))
        # A rule that folds and has a merge of its own beside it is faster where it sees all experts at once.
        elif isinstance(rule, Folding) and (self.work.keep_running or type(rule).merge is Folding.merge):
            self._fold(rule, site)
        else:
            self._write(site.start, rule.merge(*self.stack.read(site), self.facts, site))

    def _fold(self, rule: Folding, site: Site) -> None:
        """Add the experts to one block of the running state as they are read, and store it where that is asked for."""
        stop = min(site.start + BLOCK, self.stack.size)
        state = [each.values.read(site.start, stop) for each in self.job.running]
        base = None if self.stack.base is None else self.stack.base.read(site.start, stop)
        experts = (each.read(site.start, stop) for each in self.stack.experts)
        self._write(site.start, self._folded(rule, state, base, experts, site))

    def _whole(self, rule: Rule) -> None:
        base, experts = whole(self.stack)
        site = Site(self.job.name)
        if self.work.keep_running and isinstance(rule, Folding):
            running = [each.values for each in self.job.running]
            state = [each.read(0, math.prod(each.shape)).reshape(each.shape) for each in running]
            merged = self._folded(rule, state, base, experts, site)
        elif self.work.device is not None and elsewhere(rule):
            merged = _on(self.work.device, rule, base, experts, self.facts, site)
        else:
            merged = rule.merge(base, experts, self.facts, site)
        merged = merged.reshape(-1)
        for start in range(0, merged.size, BLOCK):
            self._write(start, merged[start : start + BLOCK])

    def _folded(
        self, rule: Folding, state: list[Array], base: Array | None, experts: Iterable[Array], site: Site
    ) -> Array:
        job = self.job
        state = rule.folded(state, base, experts, self.facts, site, job.before)
        for (name, dtype, _), each in zip(state_of(job), state, strict=True) if self.work.keep_running else ():
            raw = np.ascontiguousarray(each, DTYPES[dtype]).reshape(-1)
            for start in range(0, raw.size, BLOCK):
                self._put(name, site.start + start, raw[start : start + BLOCK])
        return rule.finish(state, base, job.before + len(job.experts))

    def _copied(self, site: Site) -> np.ndarray[Any, Any]:
        """Return a block of the first expert, as it is in the file where the result has its format."""
        first, stop = self.job.experts[0].values, min(site.start + BLOCK, self.stack.size)
        block = self.stack.experts[0].read(site.start, stop)
        same = isinstance(first, Mapped) and first.dtype == self.job.dtype
        return first.raw[site.start : stop] if same and isinstance(first, Mapped) else block

    def _write(self, start: int, numbers: Any) -> None:
        dtype = self.job.dtype
        with np.errstate(over="ignore"):
            raw = np.ascontiguousarray(numbers, DTYPES[dtype])
        overflown = nonfinite(raw, dtype)
        if overflown and floating(dtype) and np.isfinite(np.asarray(numbers, working(dtype))).all():
            raise InputError(f"tensor {self.job.name!r} does not fit {dtype}: choose a wider out_dtype")
        self._put(self.job.name, start, raw)

    def _put(self, name: str, start: int, raw: np.ndarray[Any, Any]) -> None:
        self.work.output.write(name, start * raw.itemsize, raw)
        self.written.setdefault(name, {})[start] = xxh3_64_intdigest(raw.view(np.uint8).data)


def elsewhere(rule: Rule) -> bool:
    """Return whether a rule takes so long over whole matrices that an accelerator is worth the way there."""
    return not rule.blockwise and not isinstance(rule, Folding)


def _on(device: str, rule: Rule, base: Array | None, experts: list[Array], facts: Any, site: Site) -> Array:
    # Only these rules are worth the second that its import takes.
    import torch

    start, *ends = (None if each is None else torch.from_numpy(each).to(device) for each in (base, *experts))
    return rule.merge(start, ends, facts, site).cpu().numpy()


def state_of(job: Job) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return the name, format and shape of each array of the running state of a job."""
    if not isinstance(job.rule, Folding):
        return []
    # What is gone on from counts too: the format of the first expert, which is not read any more.
    every = [each.values for each in (*job.sources, *job.running[:1])]
    formats = {each.dtype for each in every if isinstance(each, Mapped)}
    kept = job.rule.kept(job.shape, "F64" if "F64" in formats else "F32", bool(job.statistics))
    return [(part_name(part, job.name), dtype, shape) for part, (dtype, shape) in enumerate(kept)]


def part_name(part: int, name: str) -> str:
    """Return the name of an array of the running state of a tensor."""
    return f"{part}:{name}"
