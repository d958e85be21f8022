"""How often a key may ask: tokens that grow with time, of one process or shared by all workers of a server."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: the workers of one server cannot share anything
    fcntl = None  # type: ignore[assignment]

__all__ = ["Bucket", "shared_file"]

_AHEAD_SECONDS = 60.0
_STATE = struct.Struct("dd")


class Bucket:
    """Tokens that grow with time; a request takes one."""

    def __init__(self, rate: float, capacity: float, now: float, *, file: Path | None = None) -> None:
        """Start with all tokens, or with those that are in a file.

        Args:
            rate: tokens per second.
            capacity: the most there are.
            now: seconds of the clock.
            file: of :func:`shared_file`, which workers lock in turn; None: this process has its own.

        Raises:
            OSError: the file cannot be written.
        """
        self.rate = rate
        self.capacity = capacity
        self._file = file
        self._state = [capacity, now]
        """How many there are, and when that was right."""
        with self._locked() as state:
            if state[1] > now + _AHEAD_SECONDS:  # of a server before the machine was started again
                state[:] = capacity, now

    def take(self, now: float) -> float:
        """Take a token and return 0; or return the seconds until there is one."""
        with self._locked() as state:
            tokens, at = state
            # Another worker's clock may have been read a moment later.
            tokens = min(self.capacity, tokens + max(0.0, now - at) * self.rate)
            enough = tokens >= 1.0
            state[:] = tokens - enough, max(now, at)
            return 0.0 if enough else (1.0 - tokens) / self.rate

    @contextlib.contextmanager
    def _locked(self) -> Iterator[list[float]]:
        if self._file is None:
            yield self._state
            return
        number = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)  # until it is closed
            stored = os.pread(number, _STATE.size, 0)
            state = list(_STATE.unpack(stored)) if len(stored) == _STATE.size else self._state
            yield state
            os.pwrite(number, _STATE.pack(*state), 0)
        finally:
            os.close(number)


def shared_file(limits: str) -> Path:
    """Where the workers of one server, whose parent's number is in the name, keep tokens: another one for other limits.

    Raises:
        OSError: they cannot share any.
    """
    if fcntl is None:
        raise OSError("this system has no locks of files")
    folder = Path(tempfile.gettempdir()) / f"pocketzoo-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise OSError(f"{folder} belongs to somebody else")
    return folder / f"rate-{os.getppid()}-{hashlib.sha256(limits.encode()).hexdigest()[:32]}"
