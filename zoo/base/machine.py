"""What the process may use of the machine."""

from __future__ import annotations

import os

__all__ = ["cores"]


def cores() -> int:
    """Processor cores this process may use: its affinity on Linux, all of them elsewhere."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
