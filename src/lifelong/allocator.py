"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import platform

# Numbers of glibc's malloc.h, and bytes of the largest block that its older versions can keep.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ALWAYS = 1 << 25


def keep_freed_memory(largest: int = 1 << 28) -> None:
    """Ask glibc to keep the memory of freed blocks for the next ones instead of giving it back to the system.

    Without it every large temporary on the CPU is a fresh mapping, and much of the time of work that makes one after
    another goes to page faults (`benchmarks/allocator.py`). The process keeps what it asks for here until it ends;
    other C libraries, and other systems, are left as they are.

    Args:
        largest: bytes of the largest block that is kept; of free memory twice as much is.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        if not library.mallopt(_M_MMAP_THRESHOLD, largest):
            library.mallopt(_M_MMAP_THRESHOLD, _ALWAYS)
        library.mallopt(_M_TRIM_THRESHOLD, 2 * largest)


def give_freed_memory_back() -> None:
    """Have glibc give the system what was freed and kept so far, so that it does not count as in use."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
