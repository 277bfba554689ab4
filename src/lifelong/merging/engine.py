"""Running a plan: every tensor read once, merged block by block on all cores, and written in place.

The result grows in `OUT.partial` and gets its name when all of it is there. A journal says which tensors are finished,
with a digest of their bytes, so that a merge that was killed goes on to the same bytes.
"""

from __future__ import annotations

import ctypes
import functools
import json
import math
import os
import platform
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from lifelong.errors import InputError, StateError
from lifelong.merging.checkpoint import Mapped
from lifelong.merging.formats import DTYPES, floating, nonfinite, working
from lifelong.merging.in_memory import whole
from lifelong.merging.output import RUNNING, Output, reserve
from lifelong.merging.plan import Job, Plan, Source
from lifelong.merging.rule import BLOCK, Folding, Rule, Site, Stack, Values

# Blocks that one worker takes at a time: enough that handing them over costs nothing.
_CHUNK = 8
# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
JOURNAL = "journal.jsonl"
MANIFEST = "lifelong_merge.json"


@dataclass(frozen=True)
class Finished:
    """One tensor of the result that is done: its name, and how many of how many are."""

    name: str
    done: int
    of: int


class NonfiniteError(InputError):
    """An input holds numbers that are infinite or not a number."""


@dataclass
class Watched:
    """Values that are checked and fingerprinted as they are read for the first time.

    Args:
        source: what is read.
        allow_nonfinite: infinities and NaN pass.
        digests: of each block that has been read.
    """

    source: Source
    allow_nonfinite: bool
    digests: dict[int, int] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.values.shape

    def read(self, start: int, stop: int) -> Any:
        values = self.source.values
        size = math.prod(values.shape)
        for first in range(start - start % BLOCK, stop, BLOCK):
            if first not in self.digests:
                self._look(first, min(first + BLOCK, size))
        return values.read(start, stop)

    def _look(self, start: int, stop: int) -> None:
        values = self.source.values
        # What is on disk as it is there, which is less to look at; what is made of several files as it was made.
        raw = values.raw[start:stop] if isinstance(values, Mapped) else np.asarray(values.read(start, stop), np.float32)
        if not self.allow_nonfinite and nonfinite(raw, values.dtype if isinstance(values, Mapped) else "F32"):
            raise NonfiniteError(f"{self.source.model}: {self.source.name}")
        self.digests[start] = xxh3_64_intdigest(raw.view(np.uint8).data)

    def digest(self) -> str:
        """Return the fingerprint of the tensor: the digest of the digests of its blocks."""
        return _combined(self.digests)


def merge(
    plan: Plan,
    out: Path,
    *,
    threads: int | None = None,
    shard_bytes: int,
    resume: bool = False,
    allow_nonfinite: bool = False,
    replace: bool = False,
) -> Iterator[Finished]:
    """Run `plan` and leave its result in the folder `out`; yields each tensor as it is finished.

    Args:
        plan: what to do.
        out: a folder that does not exist yet, but for `replace`.
        threads: workers; by default as many as the processors that this process may use.
        shard_bytes: the largest file of weights.
        resume: go on with what an interrupted merge of the same plan left in `OUT.partial`.
        allow_nonfinite: merge inputs that hold infinities or NaN instead of refusing them.
        replace: put the result in the place of what is at `out`, once it is whole.

    Raises:
        InputError: `out` exists, an input that is not finite (all of them are listed), or a full disk; nothing is left
            under `out`.
        StateError: what `resume` would go on with is of another merge.
    """
    if out.exists() and not replace:
        raise InputError(f"{out} exists: choose another folder")
    _keep_freed_memory()
    partial = out.with_name(f"{out.name}.partial")
    if partial.exists() and not resume:
        raise InputError(f"{partial} holds an unfinished merge: go on with --resume, or remove it")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{partial}.lock", timeout=0):
            yield from _merge(plan, partial, threads, shard_bytes, allow_nonfinite)
            _publish(partial, out)
    except Timeout:
        raise InputError(f"another process merges into {partial}") from None
    finally:
        Path(f"{partial}.lock").unlink(missing_ok=True)


def _merge(
    plan: Plan, partial: Path, threads: int | None, shard_bytes: int, allow_nonfinite: bool
) -> Iterator[Finished]:
    shapes = [(job.name, job.dtype, job.shape) for job in plan.jobs]
    identity = fingerprint(plan, shard_bytes)
    journal = partial / JOURNAL
    known = _journaled(journal, identity) if journal.exists() else None
    if known is None:
        for each in partial.iterdir():
            each.unlink()
    output = reserve(partial, shapes, plan.metadata, shard_bytes, fresh=known is None)
    if plan.keep_running:
        kept = [each for job in plan.jobs for each in _state_of(job)]
        output += reserve(partial, kept, {}, math.inf, fresh=known is None, stem=RUNNING)
    try:
        if known is None:
            journal.write_text(json.dumps({"plan": identity}) + "\n", encoding="utf-8")
        finished = {name: line for name, line in (known or {}).items() if _stands(line, output)}
        workers = threads or _processors()
        with journal.open("a", encoding="utf-8") as log:
            # A last line that a kill cut off must not swallow the next one.
            log.write("\n")
            todo = [job for job in plan.jobs if job.name not in finished]
            for line in _run(plan, todo, output, workers, allow_nonfinite):
                log.write(json.dumps(line) + "\n")
                log.flush()
                finished[line["name"]] = line
                yield Finished(line["name"], len(finished), len(plan.jobs))
        _compare(plan, finished)
        output.sync()
    except NonfiniteError:
        output.close()
        shutil.rmtree(partial)
        raise InputError(_all_nonfinite(plan)) from None
    except StateError:
        output.close()
        shutil.rmtree(partial)
        raise
    finally:
        output.close()
    _write_rest(plan, partial, output, [finished[job.name] for job in plan.jobs])


def _run(
    plan: Plan, todo: Sequence[Job], output: Output, workers: int, allow_nonfinite: bool
) -> Iterator[dict[str, Any]]:
    """Run the jobs of `plan` left to do and yield the journal's line of each; a few are under way at a time."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[tuple[_Running, list[Future[Any]]]] = deque()
        try:
            facts = _surveyed(plan.jobs, pool) if todo else {}
            for job in todo:
                running = _Running(job, output, pool, allow_nonfinite, plan.keep_running, facts.get(job.name))
                pending.append((running, running.start()))
                while sum(len(futures) for _, futures in pending) > 4 * workers:
                    yield _finish(*pending.popleft())
            while pending:
                yield _finish(*pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _stands(line: Mapping[str, Any], output: Output) -> bool:
    """Return whether the tensors that a line of the journal speaks of are in the files as it says."""
    return all(output.digest(name) == digest for name, digest in line["digests"].items())


def _compare(plan: Plan, finished: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to add to a merge of other inputs than those that were read."""
    for name, line in finished.items():
        for model, digest in plan.expected.get(name, {}).items():
            if line["sources"].get(model, digest) != digest:
                raise StateError(f"tensor {name!r} of {model} is not what it was when the merge began")


def _state_of(job: Job) -> list[tuple[str, str, tuple[int, ...]]]:
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


def _surveyed(jobs: Sequence[Job], pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Return what rules must know of the whole model, by the name of the tensor."""
    groups: dict[tuple[type[Rule], int], list[tuple[Rule, Stack]]] = {}
    for job in jobs:
        if job.rule is not None:
            base = None if job.base is None else job.base.values
            stack = Stack(job.name, base, [each.values for each in job.experts], functools.partial(_spread, pool))
            groups.setdefault((type(job.rule), len(job.experts)), []).append((job.rule, stack))
    found: dict[str, Any] = {}
    for parts in groups.values():
        facts = parts[0][0].survey_model(parts)
        found |= {stack.name: facts for _, stack in parts}
    return found


def _finish(running: _Running, futures: list[Future[Any]]) -> dict[str, Any]:
    for future in futures:
        future.result()
    return running.line()


class _Running:
    """A job under way."""

    def __init__(
        self, job: Job, output: Output, pool: ThreadPoolExecutor, allow_nonfinite: bool, keep: bool, model: Any
    ) -> None:
        self.job, self.output, self.pool, self.keep = job, output, pool, keep
        self.watched = [Watched(source, allow_nonfinite) for source in job.sources]
        self.written: dict[str, dict[int, int]] = {job.name: {}}
        base: Values | None = self.watched[0] if job.base is not None else None
        experts: list[Values] = [*self.watched[0 if job.base is None else 1 :]]
        statistics = [Watched(source, allow_nonfinite) for source in job.statistics]
        self.stack = Stack(job.name, base, experts, functools.partial(_spread, pool), model, statistics)
        self.watched += statistics
        self.facts: Any = None

    def start(self) -> list[Future[Any]]:
        """Survey the tensor, then hand its blocks to the workers; they may still be at work when this returns."""
        rule, sites = self.job.rule, self.stack.sites()
        if rule is not None and sites:
            self.facts = rule.survey(self.stack)
            if not rule.blockwise:
                return [self.pool.submit(self._whole)]
        work = self._copy if rule is None else self._fold if self.keep else self._block
        return [self.pool.submit(_each, work, sites[i : i + _CHUNK]) for i in range(0, len(sites), _CHUNK)]

    def line(self) -> dict[str, Any]:
        """Return what the journal says of the finished tensor."""
        sources = {each.source.model: each.digest() for each in self.watched if each.digests}
        digests = {name: _combined(written) for name, written in self.written.items()}
        return {"name": self.job.name, "digests": digests, "sources": sources}

    def _block(self, site: Site) -> None:
        base, experts = self.stack.read(site)
        assert self.job.rule is not None
        self._write(site.start, self.job.rule.merge(base, experts, self.facts, site))

    def _fold(self, site: Site) -> None:
        """Add the experts to one block of the running state, and store it beside the result."""
        stop = min(site.start + BLOCK, self.stack.size)
        state = [each.values.read(site.start, stop) for each in self.job.running]
        self._write(site.start, self._folded(state, *self.stack.read(site), site))

    def _whole(self) -> None:
        base, experts = whole(self.stack)
        site = Site(self.job.name)
        assert self.job.rule is not None
        if self.keep:
            parts = [each.values for each in self.job.running]
            state = [each.read(0, math.prod(each.shape)).reshape(each.shape) for each in parts]
            merged = self._folded(state, base, experts, site)
        else:
            merged = self.job.rule.merge(base, experts, self.facts, site)
        merged = merged.reshape(-1)
        for each in self.stack.sites():
            self._write(each.start, merged[each.start : each.start + BLOCK])

    def _folded(self, state: list[Any], base: Any, experts: list[Any], site: Site) -> Any:
        job, rule = self.job, self.job.rule
        assert isinstance(rule, Folding)
        state = rule.folded(state, base, experts, self.facts, site, job.before)
        for (name, dtype, _), each in zip(_state_of(job), state, strict=True):
            raw = np.ascontiguousarray(each, DTYPES[dtype]).reshape(-1)
            for start in range(0, raw.size, BLOCK):
                self._put(name, site.start + start, raw[start : start + BLOCK])
        return rule.finish(state, base, job.before + len(experts))

    def _copy(self, site: Site) -> None:
        first = self.job.experts[0].values
        same = isinstance(first, Mapped) and first.dtype == self.job.dtype
        stop = min(site.start + BLOCK, self.stack.size)
        block = self.stack.experts[0].read(site.start, stop)
        self._write(site.start, first.raw[site.start : stop] if same and isinstance(first, Mapped) else block)

    def _write(self, start: int, numbers: Any) -> None:
        dtype = self.job.dtype
        with np.errstate(over="ignore"):
            raw = np.ascontiguousarray(numbers, DTYPES[dtype])
        overflown = nonfinite(raw, dtype)
        if overflown and floating(dtype) and np.isfinite(np.asarray(numbers, working(dtype))).all():
            raise InputError(f"tensor {self.job.name!r} does not fit {dtype}: choose a wider out_dtype")
        self._put(self.job.name, start, raw)

    def _put(self, name: str, start: int, raw: np.ndarray[Any, Any]) -> None:
        self.output.write(name, start * raw.itemsize, raw)
        self.written.setdefault(name, {})[start] = xxh3_64_intdigest(raw.view(np.uint8).data)


def _spread(pool: ThreadPoolExecutor, function: Callable[[Site], Any], sites: Sequence[Site]) -> list[Any]:
    """Apply `function` to each of `sites` on the workers, in order of results."""
    chunks = [sites[i : i + _CHUNK] for i in range(0, len(sites), _CHUNK)]
    if len(chunks) <= 1:
        return _each(function, sites)
    futures = [pool.submit(_each, function, chunk) for chunk in chunks]
    return [each for future in futures for each in future.result()]


def _each(function: Callable[[Site], Any], sites: Sequence[Site]) -> list[Any]:
    return [function(site) for site in sites]


def _combined(digests: dict[int, int]) -> str:
    return xxh3_128_hexdigest(np.array([digests[start] for start in sorted(digests)], np.uint64).tobytes())


def _keep_freed_memory() -> None:
    """Ask glibc to keep the memory of freed blocks for the next ones instead of giving it back to the system.

    Without it most of the time of an element-wise merge goes to page faults: every temporary is a fresh mapping.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 26)
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 27)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fingerprint(plan: Plan, shard_bytes: int) -> str:
    """Return what tells this merge from another: its rules, its tensors, and the inputs' names, sizes and times."""
    jobs = [
        (job.name, job.dtype, job.shape, repr(job.rule), [(s.model, s.name) for s in job.sources]) for job in plan.jobs
    ]
    files = [
        (name, file.path.name, file.path.stat().st_size, file.path.stat().st_mtime_ns)
        for name, model in plan.models.items()
        for file in model.files
    ]
    return xxh3_128_hexdigest(json.dumps([jobs, files, shard_bytes, plan.keep_running, BLOCK]).encode())


def _journaled(path: Path, identity: str) -> dict[str, dict[str, Any]] | None:
    """Return the lines of the journal by tensor, or None where it does not even begin."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text) if text else {})
        except ValueError:
            continue  # the line that a kill cut off
    if not lines or "plan" not in lines[0]:
        return None
    if lines[0]["plan"] != identity:
        raise StateError(f"{path.parent} is of another recipe, or its inputs have changed: remove it to begin anew")
    return {line["name"]: line for line in lines if "name" in line}


def _all_nonfinite(plan: Plan) -> str:
    """Return one line that names every input tensor with infinities or NaN, and how many."""
    found: list[str] = []
    for job in plan.jobs:
        for source in (*job.sources, *job.statistics):
            values = source.values
            if isinstance(values, Mapped):
                count = sum(
                    nonfinite(values.raw[start : start + BLOCK], values.dtype)
                    for start in range(0, values.raw.size, BLOCK)
                )
                if count:
                    found.append(f"{source.model}: {source.name} ({count} of {values.raw.size})")
    found = list(dict.fromkeys(found))
    return f"{len(found)} tensors hold NaN or infinities, --allow-nonfinite merges them: {'; '.join(found)}"


def _write_rest(plan: Plan, partial: Path, output: Output, lines: Sequence[dict[str, Any]]) -> None:
    """Write what belongs beside the weights; the manifest says what went in and came out."""
    for name, content in plan.carried.items():
        if isinstance(content, str):
            (partial / name).write_text(content, encoding="utf-8")
        else:
            shutil.copyfile(content, partial / name)
    output.write_index()
    from lifelong import __version__

    manifest = {
        "lifelong": __version__,
        "recipe": plan.recipe,
        "models": {name: str(model.path.resolve()) for name, model in plan.models.items()},
        "tensors": {
            line["name"]: {
                "digest": line["digests"][line["name"]],
                "sources": {**plan.expected.get(line["name"], {}), **line["sources"]},
            }
            for line in lines
        },
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (partial / JOURNAL).unlink()


def _publish(partial: Path, out: Path) -> None:
    """Give the finished folder its name, after everything in it has reached the disk."""
    for path in partial.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    previous = out.with_name(f"{out.name}.previous")
    if out.exists():
        out.rename(previous)
    partial.rename(out)
    if previous.exists():
        shutil.rmtree(previous)
    if hasattr(os, "O_DIRECTORY"):
        parent = os.open(out.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(parent)
        os.close(parent)
