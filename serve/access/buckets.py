"""How often a key may ask: tokens that grow with time, in this process or shared by all workers of a server."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

try:
    import fcntl
except ImportError:  # Windows: the workers of one server cannot share anything
    fcntl = None  # type: ignore[assignment]

__all__ = ["Bucket", "LocalTokens", "SharedTokens", "Tokens"]

_AHEAD_SECONDS = 60.0
_STATE = struct.Struct("dd")


class Tokens(Protocol):
    """Where the tokens are kept."""

    def state(self) -> contextlib.AbstractContextManager[list[float]]:
        """How many there are and when that was right, in seconds of the clock; to be changed in the block."""


class LocalTokens:
    """Tokens in this process."""

    def __init__(self, capacity: float, now: float) -> None:
        self._state = [capacity, now]

    @contextlib.contextmanager
    def state(self) -> Iterator[list[float]]:
        """See :class:`Tokens`."""
        yield self._state


class SharedTokens:
    """Tokens in a file that the workers of one server lock in turn: their parent's number is in its name."""

    def __init__(self, key: str, capacity: float, now: float) -> None:
        """Open the file of the key, or make it; a key whose limits change starts anew.

        Raises:
            OSError: it cannot be written.
        """
        if fcntl is None:
            raise OSError("this system has no locks of files")
        folder = Path(tempfile.gettempdir()) / f"pocketzoo-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid != os.getuid():
            raise OSError(f"{folder} belongs to somebody else")
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        self._path = folder / f"rate-{os.getppid()}-{name}"
        self._first = (capacity, now)
        with self.state() as state:  # makes sure that it can be written
            if state[1] > now + _AHEAD_SECONDS:  # of a server before the machine was started again
                state[:] = self._first

    @contextlib.contextmanager
    def state(self) -> Iterator[list[float]]:
        """See :class:`Tokens`."""
        number = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)  # until it is closed
            stored = os.pread(number, _STATE.size, 0)
            state = list(_STATE.unpack(stored) if len(stored) == _STATE.size else self._first)
            yield state
            os.pwrite(number, _STATE.pack(*state), 0)
        finally:
            os.close(number)


class Bucket:
    """Tokens that grow with time; a request takes one."""

    def __init__(self, rate: float, capacity: float, tokens: Tokens, *, workers: int = 1) -> None:
        """`rate`: tokens per second, `capacity`: the most there are; of this worker, where `workers` share nothing."""
        self.asked = rate * workers
        """The rate of all of them."""
        self.rate = rate
        self.capacity = capacity
        self._tokens = tokens

    def take(self, now: float) -> float:
        """Take a token and return 0; or return the seconds until there is one."""
        with self._tokens.state() as state:
            tokens, at = state
            # Another worker's clock may have been read a moment later.
            tokens = min(self.capacity, tokens + max(0.0, now - at) * self.rate)
            state[1] = max(now, at)
            enough = tokens >= 1.0
            state[0] = tokens - 1.0 if enough else tokens
            return 0.0 if enough else (1.0 - tokens) / self.rate
