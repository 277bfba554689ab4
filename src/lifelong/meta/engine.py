"""A batch of tasks in chunks: on the CPU over a pool of threads with one core each, elsewhere one after another.

A chunk bounds memory. On the CPU several threads with a core each beat one call on all cores: the tensors of a chunk
are small, and an inner loop is a long chain of them.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from lifelong.allocator import keep_freed_memory
from lifelong.errors import DivergedError
from lifelong.meta.episodes import Episodes
from lifelong.meta.learner import MetaLearner, Outcome, Problem, mean_of
from lifelong.meta.network import FORMULATIONS, Formulation, fault
from lifelong.meta.room import bytes_of, fitting, room
from lifelong.tree import Params

T = TypeVar("T")


@dataclass(frozen=True)
class Engine:
    """How a batch of tasks is computed; the numbers are the same but for rounding.

    Args:
        formulation: of the network.
        tasks_at_once: tasks of a chunk.
        threads: chunks that are computed side by side, on the CPU.
    """

    formulation: Formulation
    tasks_at_once: int
    threads: int = 1


def over_chunks(work: Callable[[Episodes], T], episodes: Episodes, engine: Engine) -> list[T]:
    """Return what `work` makes of each chunk of tasks, in order."""
    chunks = list(episodes.chunks(engine.tasks_at_once))
    if episodes.support.device.type != "cpu" or engine.threads == 1:
        return [work(chunk) for chunk in chunks]
    return list(_pool(engine.threads).map(work, chunks))


def gradient(
    algorithm: MetaLearner,
    problem: Problem,
    engine: Engine,
    meta: Params,
    buffers: Params,
    episodes: Episodes,
    iteration: int,
) -> Outcome:
    """Return the mean meta-gradient over `episodes`, with each task's loss and score.

    Args:
        meta: leaves that need a gradient.
        buffers: as the algorithm keeps them.
        iteration: how many have been made; some settings hang on it.

    Raises:
        DivergedError: a task's loss is not a finite number.
    """

    def work(chunk: Episodes) -> Outcome:
        return algorithm.gradient(problem, meta, buffers, chunk, iteration)

    found = mean_of(over_chunks(work, episodes, engine))
    finite = found.losses.isfinite()
    if not bool(finite.all()):
        raise _diverged(algorithm, problem, meta, buffers, episodes, int((~finite).nonzero()[0]), iteration)
    return found


def answers(
    algorithm: MetaLearner, problem: Problem, engine: Engine, meta: Params, buffers: Params, episodes: Episodes
) -> list[Tensor]:
    """Return the query outputs `[tasks, queries, outputs]` after 0, 1, 2, ... steps of adaptation.

    Dropout is for training alone: neither adaptation nor answers have it here.
    """
    held = {name: each.detach() for name, each in meta.items()}
    asked = replace(problem, network=problem.network.answering)

    def work(chunk: Episodes) -> list[Tensor]:
        return list(algorithm.answers(asked, held, buffers, chunk))

    return [torch.cat(each) for each in zip(*over_chunks(work, episodes, engine), strict=True)]


def candidates(trunk: nn.Module, sample: Tensor, tasks: int, threads: int) -> list[Engine]:
    """Return the ways to compute `tasks` tasks a batch that are worth a try, the likeliest first.

    Args:
        trunk: of a `TaskNetwork`; it decides which formulations there are, `loop` where no other can compute it.
        sample: inputs that it can take.
        threads: cores to use.
    """
    kinds = [type(each) for each in trunk.modules()]
    able = [each for each in FORMULATIONS[:3] if fault(trunk, sample, each) is None] or ["loop"]
    if any(issubclass(kind, nn.modules.dropout._DropoutNd) for kind in kinds):
        threads = 1  # side by side, they would draw in any order
    if sample.device.type != "cpu":
        return [Engine(each, tasks) for each in able]
    even = math.ceil(tasks / threads)
    if not any(issubclass(kind, nn.modules.conv._ConvNd) for kind in kinds):
        # Small products: threads would mostly wait for the interpreter. Without convolutions `grouped` is `columns`.
        sizes = dict.fromkeys([(tasks, 1), (even, threads)])
        return [Engine(each, size, cores) for each in able if each != "grouped" for size, cores in sizes]
    smaller = sorted({even, *(size for size in (4, 8, 16) if size < even)}, reverse=True)
    return [Engine(each, size, threads) for each in able for size in smaller]


def fastest(measured: Callable[[Engine], None], engines: Sequence[Engine]) -> Engine:
    """Return the engine that `measured` runs fastest, by the better of two runs after one that warms up.

    One that is slower than twice the best so far is not run again; one for which memory does not suffice is left out.
    """
    best, record = engines[0], math.inf
    for engine in engines:
        try:
            measured(engine)
            for _ in range(2):
                begun = time.perf_counter()
                measured(engine)
                spent = time.perf_counter() - begun
                if spent < record:
                    best, record = engine, spent
                if spent > 2 * record:
                    break
        except torch.OutOfMemoryError:
            smaller = replace(engine, tasks_at_once=max(1, engine.tasks_at_once // 2))
            if record == math.inf:
                best = smaller
    return best


def choose(
    algorithm: MetaLearner,
    make: Callable[[Formulation], Problem],
    episodes: Episodes,
    *,
    formulation: Formulation | Literal["auto"] = "auto",
    tasks_at_once: int | Literal["auto"] = "auto",
    threads: int = 1,
) -> Engine:
    """Return how to compute batches like `episodes`: what is set by hand, and for the rest what is measured as fastest.

    Where the number of tasks at once is not set, no more are tried than fit into half of the memory that is free, by
    what one of them takes.

    Args:
        make: builds the problem with a formulation.
    """
    found = candidates(make("loop").network.trunk, episodes.support[0], len(episodes), threads)
    if formulation != "auto":
        found = list(dict.fromkeys(replace(each, formulation=formulation) for each in found))
    if tasks_at_once != "auto":
        found = list(dict.fromkeys(replace(each, tasks_at_once=tasks_at_once) for each in found))
    problem, device = functools.cache(make), episodes.support.device

    def measured(engine: Engine, batch: Episodes = episodes) -> None:
        asked = problem(engine.formulation)
        meta = {name: each.requires_grad_() for name, each in algorithm.parameters(asked).items()}
        gradient(algorithm, asked, engine, meta, algorithm.buffers(asked), batch, 0)
        if device.type == "cuda":
            torch.cuda.synchronize()

    @functools.cache
    def bytes_of_a_task(each: Formulation) -> int:
        alone = next(episodes.chunks(1))
        return bytes_of(lambda: measured(Engine(each, 1), alone))

    if tasks_at_once == "auto":
        found = fitting(found, bytes_of_a_task, room(device))
    return found[0] if len(found) == 1 else fastest(measured, found)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    # Threads that give memory back wait for each other in the system: a fifth of the time of a batch.
    keep_freed_memory()
    # The number of intra-op threads is each thread's own; one that starts up takes that of the process.
    return ThreadPoolExecutor(threads, "tasks", initializer=lambda: torch.set_num_threads(1))


def _diverged(
    algorithm: MetaLearner,
    problem: Problem,
    meta: Params,
    buffers: Params,
    episodes: Episodes,
    task: int,
    iteration: int,
) -> DivergedError:
    """Return the error for `task`, whose adaptation is done again to see at which step it fails."""
    alone = list(episodes.chunks(1))[task]
    held = {name: each.detach() for name, each in meta.items()}
    finite = [bool(outputs.isfinite().all()) for outputs in algorithm.training_answers(problem, held, buffers, alone)]
    step = finite.index(False) if False in finite else max(0, len(finite) - 1)
    if step:
        place = f", at inner step {step} with {algorithm.pace()}: try a smaller one, or clip"
    elif iteration:
        place = ": try a smaller lr, or clip"
    else:
        place = ", before anything is learned: look for such numbers in the data and the network's weights"
    return DivergedError(
        f"the loss of task {task + 1} of {len(episodes)} is not a finite number in iteration {iteration + 1}{place}"
    )
