"""How much memory a run held at most, even where several run in one process one after another."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from lifelong.allocator import give_freed_memory_back


def reset_peak() -> None:
    """Start the process's high-water mark afresh where the system can (Linux); elsewhere it stays the process's."""
    give_freed_memory_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """Return the most resident memory since `reset_peak`, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
