"""Workers: forks of this process where the system has them, else threads.

Threads share the interpreter's lock. An operation on a block takes microseconds, and after each one a thread waits for
the lock and to be woken: two threads merge hardly faster than one. Forks inherit what they work on, so that nothing but
tasks and results travels, and start in milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from lifelong.errors import LifelongError

Item = TypeVar("Item")
Result = TypeVar("Result")

_this = threading.local()


@contextmanager
def workers(
    function: Callable[[Item], Result], count: int, *, forks: bool
) -> Iterator[Callable[[Item], Future[Result]]]:
    """Give a function that hands an item to `function` on one of `count` workers; at the end none of them works.

    Args:
        function: what is done with an item. Items and results travel between processes, the function need not.
        count: of workers.
        forks: use processes; `function` must then call no library that has started threads before.

    Raises:
        LifelongError: the system ended a worker.
    """
    pool = _forked(function, count) if forks else ThreadPoolExecutor(count, initializer=_begin, initargs=(function,))
    idle = False
    try:
        yield lambda item: pool.submit(_call, item)
        idle = True
    except BrokenExecutor:
        raise LifelongError(
            "the system ended a process of the merge, perhaps for want of memory: try fewer --threads"
        ) from None
    finally:
        # Processes that have nothing left to do may take their time to give back what they mapped.
        pool.shutdown(wait=not idle, cancel_futures=True)


def spread(function: Callable[[Item], Result], items: Sequence[Item], count: int, *, forks: bool) -> list[Result]:
    """Return what `function` gives for each of `items`, in order, on `count` workers."""

    def of_part(part: range) -> list[Result]:
        return [function(items[index]) for index in part]

    with workers(of_part, count, forks=forks) as hand:
        step = max(1, len(items) // (8 * count))
        futures = [hand(range(i, min(i + step, len(items)))) for i in range(0, len(items), step)]
        return [each for future in futures for each in future.result()]


def can_fork() -> bool:
    """Return whether workers may be forks: on Linux, and where this is not itself a worker that may have none."""
    # Elsewhere libraries of the system start threads that a fork leaves behind.
    if sys.platform != "linux":
        return False
    import multiprocessing

    return not multiprocessing.current_process().daemon


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forked(function: Callable[[Any], Any], count: int) -> Executor:
    # Imported only here: small merges do without.
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), _begin_fork, (function,))
    # An interrupt from the terminal reaches all processes; this one ends the others, which inherit that they wait.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with warnings.catch_warnings():
            # Python warns of forks beside threads, whose locks may be held: workers use NumPy and files alone.
            warnings.simplefilter("ignore", DeprecationWarning)
            pool.submit(os.getpid)  # the first task starts all of them
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pool


def _begin_fork(function: Callable[[Any], Any]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _begin(function)


def _end_with_parent() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _begin(function: Callable[[Any], Any]) -> None:
    _this.function = function


def _call(item: Any) -> Any:
    return _this.function(item)
