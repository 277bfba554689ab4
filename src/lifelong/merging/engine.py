"""Running a plan: every tensor read once, merged block by block on all cores, and written in place.

The result grows in `OUT.partial` and gets its name when all of it is there. A journal says which tensors are finished,
with a digest of their bytes, so that a merge that was killed goes on to the same bytes.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from xxhash import xxh3_128_hexdigest

from lifelong.allocator import keep_freed_memory
from lifelong.errors import InputError, StateError
from lifelong.merging.checkpoint import Mapped
from lifelong.merging.formats import nonfinite
from lifelong.merging.output import RUNNING, Output, reserve
from lifelong.merging.plan import Job, Plan
from lifelong.merging.rule import BLOCK, Mapper, Rule, Stack
from lifelong.merging.work import Done, NonfiniteError, Work, divided, parts, state_of, tasks
from lifelong.merging.workers import can_fork, processors, spread, workers

# Tasks that are handed out for each worker: it has the next one when it is done.
_AHEAD = 3
# Numbers read below which processes, some ten milliseconds, cost more than they save.
_WORTH_FORKS = 1 << 23
# Bytes of the largest block whose memory is kept; a merge must not hold more than its bound.
_KEPT = 1 << 26
JOURNAL = "journal.jsonl"
MANIFEST = "lifelong_merge.json"


@dataclass(frozen=True)
class Finished:
    """One tensor of the result that is done: its name, and how many of how many are."""

    name: str
    done: int
    of: int


def merge(
    plan: Plan,
    out: Path,
    *,
    threads: int | None = None,
    shard_bytes: int,
    resume: bool = False,
    allow_nonfinite: bool = False,
    replace: bool = False,
    device: str | None = None,
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
        device: where PyTorch computes rules of whole matrices (`elsewhere`), such as `cuda`; None for NumPy. All others
            are bound by reading.

    Raises:
        InputError: `out` exists, an input that is not finite (all of them are listed), or a full disk; nothing is left
            under `out`.
        StateError: what `resume` would go on with is of another merge.
    """
    if out.exists() and not replace:
        raise InputError(f"{out} exists: choose another folder")
    keep_freed_memory(_KEPT)
    partial = out.with_name(f"{out.name}.partial")
    if partial.exists() and not resume:
        raise InputError(f"{partial} holds an unfinished merge: go on with --resume, or remove it")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{partial}.lock", timeout=0):
            yield from _merge(plan, partial, threads, shard_bytes, allow_nonfinite, device)
            _publish(partial, out)
    except Timeout:
        raise InputError(f"another process merges into {partial}") from None
    finally:
        Path(f"{partial}.lock").unlink(missing_ok=True)


def _merge(
    plan: Plan, partial: Path, threads: int | None, shard_bytes: int, allow_nonfinite: bool, device: str | None
) -> Iterator[Finished]:
    shapes = [(job.name, job.dtype, job.shape) for job in plan.jobs]
    identity = fingerprint(plan, shard_bytes, device)
    journal = partial / JOURNAL
    known = _journaled(journal, identity) if journal.exists() else None
    if known is None:
        for each in partial.iterdir():
            each.unlink()
    output = reserve(partial, shapes, plan.metadata, shard_bytes, fresh=known is None)
    if plan.keep_running:
        kept = [each for job in plan.jobs for each in state_of(job)]
        output += reserve(partial, kept, {}, math.inf, fresh=known is None, stem=RUNNING)
    try:
        if known is None:
            journal.write_text(json.dumps({"plan": identity}) + "\n", encoding="utf-8")
        finished = {name: line for name, line in (known or {}).items() if _stands(line, output)}
        count = threads or processors()
        with journal.open("a", encoding="utf-8") as log:
            # A last line that a kill cut off must not swallow the next one.
            log.write("\n")
            todo = [index for index, job in enumerate(plan.jobs) if job.name not in finished]
            for line in _run(plan, todo, output, count, allow_nonfinite, device):
                log.write(json.dumps(line) + "\n")
                log.flush()
                finished[line["name"]] = line
                output.begin_writing(line["digests"])
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
    plan: Plan, todo: Sequence[int], output: Output, count: int, allow_nonfinite: bool, device: str | None
) -> Iterator[dict[str, Any]]:
    """Run the jobs of `plan` left to do, by their indices, and yield the journal's line of each."""
    forks = _forks(plan, todo, count)
    facts = _surveyed(plan.jobs, functools.partial(spread, count=count, forks=forks)) if todo else {}
    work = Work(plan.jobs, output, allow_nonfinite, plan.keep_running, facts, device)
    # Tensors that are merged by several workers come first: at the end there is enough to do for all of them.
    order = sorted(todo, key=lambda index: not divided(plan.jobs[index]))
    ready = deque(task for index in order for task in tasks(index, plan.jobs[index]))
    tallies = {index: _Tally(plan.jobs[index]) for index in todo}
    yield from (tallies[index].line() for index in todo if not tallies[index].left)
    done: SimpleQueue[Future[Done]] = SimpleQueue()
    under_way = 0
    with workers(work.do, count, forks=forks) as hand:
        while ready or under_way:
            while ready and under_way < _AHEAD * count:
                hand(ready.popleft()).add_done_callback(done.put)
                under_way += 1
            found = done.get().result()
            under_way -= 1
            tally = tallies[found.task.job]
            tally.add(found)
            if not found.merged:
                # Next, while what the survey read may still be in memory.
                ready.extendleft(reversed(parts(found.task.job, found.task.stop, found.facts, tally.seen())))
            elif not tally.left:
                yield tally.line()


def _forks(plan: Plan, todo: Sequence[int], count: int) -> bool:
    """Return whether to work in processes: not for little, nor with libraries that have threads of their own."""
    rules = [job.rule for job in plan.jobs if job.rule is not None]
    numbers = sum(math.prod(plan.jobs[index].shape) * len(plan.jobs[index].sources) for index in todo)
    return count > 1 and numbers >= _WORTH_FORKS and all(rule.blockwise for rule in rules) and can_fork()


class _Tally:
    """What is known of a job under way."""

    def __init__(self, job: Job) -> None:
        self.job, self.left = job, math.prod(job.shape)
        self.read: list[dict[int, int]] = [{} for _ in (*job.sources, *job.statistics)]
        self.written: dict[str, dict[int, int]] = {job.name: {}}

    def add(self, done: Done) -> None:
        """Take in what came of one of its tasks."""
        for known, new in zip(self.read, done.read, strict=True):
            known.update(new)
        for name, digests in done.written.items():
            self.written.setdefault(name, {}).update(digests)
        if done.merged:
            self.left -= done.task.stop - done.task.start

    def seen(self) -> list[bool]:
        """Return of each input whether all of its blocks have been read."""
        return [len(known) == -(-self.left // BLOCK) for known in self.read]

    def line(self) -> dict[str, Any]:
        """Return what the journal says of the finished tensor."""
        every = zip((*self.job.sources, *self.job.statistics), self.read, strict=True)
        sources = {source.model: _combined(digests) for source, digests in every if digests}
        digests = {name: _combined(written) for name, written in self.written.items()}
        return {"name": self.job.name, "digests": digests, "sources": sources}


def _stands(line: Mapping[str, Any], output: Output) -> bool:
    """Return whether the tensors that a line of the journal speaks of are in the files as it says."""
    return all(output.digest(name) == digest for name, digest in line["digests"].items())


def _compare(plan: Plan, finished: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to add to a merge of other inputs than those that were read."""
    for name, line in finished.items():
        for model, digest in plan.expected.get(name, {}).items():
            if line["sources"].get(model, digest) != digest:
                raise StateError(f"tensor {name!r} of {model} is not what it was when the merge began")


def _surveyed(jobs: Sequence[Job], mapper: Mapper[Any]) -> dict[str, Any]:
    """Return what rules must know of the whole model, by the name of the tensor."""
    groups: dict[tuple[type[Rule], int], list[tuple[Rule, Stack]]] = {}
    for job in jobs:
        if job.rule is not None:
            base = None if job.base is None else job.base.values
            stack = Stack(job.name, base, [each.values for each in job.experts], mapper, before=job.before)
            groups.setdefault((type(job.rule), len(job.experts)), []).append((job.rule, stack))
    found: dict[str, Any] = {}
    for group in groups.values():
        facts = group[0][0].survey_model(group)
        found |= {stack.name: facts for _, stack in group}
    return found


def _combined(digests: dict[int, int]) -> str:
    return xxh3_128_hexdigest(np.array([digests[start] for start in sorted(digests)], np.uint64).tobytes())


def fingerprint(plan: Plan, shard_bytes: int, device: str | None = None) -> str:
    """Return what tells this merge from another: rules, tensors, device, and the inputs' names, sizes and times."""
    jobs = [
        (job.name, job.dtype, job.shape, repr(job.rule), [(s.model, s.name) for s in job.sources]) for job in plan.jobs
    ]
    files = [
        (name, file.path.name, file.path.stat().st_size, file.path.stat().st_mtime_ns)
        for name, model in plan.models.items()
        for file in model.files
    ]
    return xxh3_128_hexdigest(json.dumps([jobs, files, shard_bytes, plan.keep_running, BLOCK, device]).encode())


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
