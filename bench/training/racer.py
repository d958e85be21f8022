"""One contestant's process: start it, note when each epoch's line comes, count what it used, print that as JSON.

Run by bench.training.race as `python -m bench.training.racer JOB`, where JOB is a :class:`Job` as JSON. A contestant
that fails is an answer, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import psutil

from bench.training.contestants import CONTESTANTS

__all__ = ["Job", "Ran", "race"]

_LOOK_SECONDS = 1.0
"""Between two looks at the memory."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to start."""

    contestant: str
    arguments: list[str]
    """Of the interpreter."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What came of it."""

    curve: list[tuple[float, float]]
    """For each validation the seconds since the process was started, and top-1 in percent."""
    ended: list[int]
    """After which epoch each was, counted from 1."""
    seconds: float
    """Until the process had ended."""
    user_seconds: float
    system_seconds: float
    """Of processor time, children included."""
    peak_mb: float
    """Most memory at one look, a second apart, of it and its children, what they share counted once; 10^6 bytes."""
    failed: str | None
    """Why it counts for nothing: its last words."""


def race(job: Job) -> Ran:
    """Run a contestant to its end, in this process's environment."""
    reports, words = CONTESTANTS[job.contestant].reports, deque[str](maxlen=20)
    curve: list[tuple[float, float]] = []
    ended: list[int] = []
    begin, before = time.monotonic(), os.times()
    with subprocess.Popen(
        [sys.executable, *job.arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout
        watched = _Memory(process.pid)
        watched.start()
        try:
            for line in process.stdout:
                if match := reports.search(line.strip()):
                    curve.append((round(time.monotonic() - begin, 3), float(match["top1"])))
                    # Who does not count its epochs validates after each.
                    ended.append(int(match.groupdict().get("epoch") or len(curve)))
                if line.strip():
                    words.append(line.strip())
            code = process.wait()
        finally:
            process.kill()
            watched.end.set()
            watched.join()
    seconds, after = time.monotonic() - begin, os.times()
    failed = None
    if code != 0:
        failed = f"exit status {code}: {' | '.join(words)[-500:]}"
    elif not curve:
        failed = f"it reported no epoch: {' | '.join(words)[-500:]}"
    return Ran(
        curve=curve,
        ended=ended,
        seconds=round(seconds, 3),
        user_seconds=round(after.children_user - before.children_user, 2),
        system_seconds=round(after.children_system - before.children_system, 2),
        peak_mb=round(watched.most / 1e6, 1),
        failed=failed,
    )


class _Memory(threading.Thread):
    """Looks at the memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.most, self.end = pid, 0, threading.Event()

    def run(self) -> None:
        while not self.end.wait(_LOOK_SECONDS):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(self.pid)
                self.most = max(self.most, sum(map(_bytes, [process, *process.children(recursive=True)])))


def _bytes(process: psutil.Process) -> int:
    """Its share of resident memory where the system tells (Linux), else what is its own; 0 once it has ended."""
    try:
        found: Any = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(found, "pss", found.uss))


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(race(Job(**json.loads(sys.argv[1]))))))
