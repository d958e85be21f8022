"""What the process may use of the machine, and what it has used."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import math
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = [
    "allocator_variables",
    "available_memory",
    "cores",
    "give_back_freed_memory",
    "installed_version",
    "keep_freed_memory",
    "peak_bytes",
    "processor",
    "total_memory",
]

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd")
_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_MALLOPT = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30),
    "MALLOC_TRIM_THRESHOLD_": (-1, (1 << 31) - 1),
    "MALLOC_TOP_PAD_": (-2, 64 << 20),
}
"""mallopt(3): variables, parameters, bytes. Only an allocation of a GiB is still given back at once."""
_LIMIT = {True: "memory.max", False: "memory.limit_in_bytes"}
"""By whether the control groups are of version 2."""
_UNLIMITED = 1 << 62
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


@functools.cache
def processor() -> dict[str, Any]:
    """Processor, instruction sets, cores and system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cores() -> int:
    """Processor cores this process may use; at least one.

    On Linux those of its affinity, and no more than the time that the control groups around it get (containers), a
    started core counting as one; elsewhere all of them.
    """
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(most, *(math.ceil(quota) for quota in _quotas())))


def available_memory() -> int:
    """Bytes that this process could still take without pushing others, or itself, out of memory.

    On Linux the least of what the system has and what the control groups around the process leave (containers, batch
    systems), where files that are only cached count as free.
    """
    if not _MEMINFO.exists():
        import psutil

        return int(psutil.virtual_memory().available)
    return max(0, min(_meminfo("MemAvailable"), *_left_in_groups()))


def total_memory() -> int | None:
    """Bytes of memory that this process could have if nothing else ran; None where the system does not tell.

    Those of the system, or as many as the control groups around the process allow (containers).
    """
    if not _MEMINFO.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    return min(_meminfo("MemTotal"), *_limits_of_groups())


def allocator_variables(*, kept: bool) -> dict[str, str | None]:
    """Variables with which another program starts as :func:`keep_freed_memory` sets up this one.

    Args:
        kept: else as it comes: without them (None), though this process may have some from its own set-up.
    """
    values = {name: str(size) for name, (_, size) in _MALLOPT.items()} | {_HUGE_PAGES: "1"}
    return {name: value if kept else None for name, value in values.items()}


def keep_freed_memory() -> bool:
    """Let this process use the memory that it frees again, instead of giving it back to the system; whether it does.

    glibc takes every large tensor anew from the system, which clears it page by page: up to half of the CPU time of
    training on a processor. Huge pages, for which torch asks where this variable stood before its import, make what
    clearing remains a third cheaper. Other allocators (musl, macOS, Windows) keep what they free, or cannot be told;
    variables of mallopt(3) in the environment have the last word.
    """
    os.environ.setdefault(_HUGE_PAGES, "1")
    if platform.libc_ver()[0] != "glibc" or not _MALLOPT.keys().isdisjoint(os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) for setting in _MALLOPT.values())


def give_back_freed_memory(*, collect: bool = True) -> None:
    """Give the system what this process has freed, which it otherwise keeps; see :func:`keep_freed_memory`.

    After copies of a network's weights, or after a file was parsed: holes of their size are filled with little things,
    and new ones taken beside. Other C libraries than glibc keep what they want.

    Args:
        collect: whether garbage is collected before, during which no other thread runs.
    """
    if collect:
        gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


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


def _meminfo(name: str) -> int:
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    return int(fields[name].split()[0]) << 10


def _left_in_groups() -> Iterator[int]:
    """Bytes that each control group leaves which has a limit; at least one number, however large."""
    yield _UNLIMITED
    for second, group in _groups("memory"):
        names = ("memory.current", "inactive_file") if second else ("memory.usage_in_bytes", "total_inactive_file")
        if (left := _left(group, _LIMIT[second], *names)) is not None:
            yield left


def _limits_of_groups() -> Iterator[int]:
    """Bytes that each control group allows which has a limit; at least one number, however large."""
    yield _UNLIMITED
    for second, group in _groups("memory"):
        with contextlib.suppress(OSError, ValueError):  # a group without the file, or with `max` in it
            yield int((group / _LIMIT[second]).read_text())


def _quotas() -> Iterator[float]:
    """Cores whose time each control group gets which has a quota; at least one number, however large."""
    yield 1 << 20
    for second, group in _groups("cpu"):
        try:
            if second:
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue


def _groups(controller: str) -> Iterator[tuple[bool, Path]]:
    """The control groups around this process that may limit `controller`, each with whether it is of version 2.

    Limits of all groups above count; a container may see only its own, at the top.
    """
    for line in _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.exists() else ():
        number, controllers, own = line.split(":", 2)
        if number == "0":
            top = _GROUPS
        elif controller in controllers.split(","):
            top = _GROUPS / controller
        else:
            continue
        inside = top / own.lstrip("/")
        yield from ((number == "0", group) for group in (inside, *inside.parents))


def _left(group: Path, limit: str, usage: str, cached: str) -> int | None:
    """None: no such group, or without a limit."""
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        statistics = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if most == "max" else int(most) - used + int(statistics.get(cached, 0))


def installed_version(package: str) -> str | None:
    """Of a Python package; None: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
