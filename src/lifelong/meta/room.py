"""How many tasks fit into memory at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from lifelong.meta.engine import Engine
    from lifelong.meta.network import Formulation

# Of the memory that is free: the other half is for the optimiser, for validation, and for what else the machine does.
_SHARE = 0.5


def room(device: torch.device) -> int:
    """Return the bytes of `device` that tasks may take."""
    if device.type == "cuda":
        return int(_SHARE * torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(_SHARE * psutil.virtual_memory().available)


def bytes_of(work: Callable[[], object]) -> int:
    """Return the most bytes that tensors which `work` makes hold at once, on any device.

    Counted as they come and go, since what a process holds does not fall when tensors are gone. What an operation needs
    within itself is not seen.
    """
    held = _Held()
    with held:
        work()
    return held.peak


def fitting(engines: Iterable[Engine], bytes_of_a_task: Callable[[Formulation], int], free: int) -> list[Engine]:
    """Return `engines` with as many tasks at once, and as many threads, as fit into `free` bytes; one at the least.

    Args:
        engines: ways to compute a batch.
        bytes_of_a_task: what one task takes in a formulation; several take as many times that.
        free: bytes that they may take together.
    """
    found = []
    for engine in engines:
        fit = max(1, free // max(1, bytes_of_a_task(engine.formulation)))
        threads = min(engine.threads, fit)
        found.append(replace(engine, threads=threads, tasks_at_once=min(engine.tasks_at_once, fit // threads)))
    return list(dict.fromkeys(found))


class _Held(TorchDispatchMode):
    """Counts the bytes of storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage(), given)
        return found

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        """Count `storage` unless it is there already: a view's, or one that an operation was given."""
        place, size = storage._cdata, storage.nbytes()
        if place in self.known or place in given:
            return
        self.known.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size
