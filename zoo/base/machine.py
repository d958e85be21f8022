"""What the process may use of the machine, and what it has used."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["cores", "peak_bytes"]

_STATUS = Path("/proc/self/status")


def cores() -> int:
    """Processor cores this process may use: its affinity on Linux, all of them elsewhere."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_bytes() -> int:
    """The most bytes of memory that this process has had resident; 0 where the system does not tell.

    Linux tells two numbers; the one that getrusage(2) returns is inherited from the process that started this one.
    """
    if _STATUS.exists():
        lines = _STATUS.read_text().splitlines()
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10
