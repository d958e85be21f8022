"""The memory in which images are decoded: small ones in any slot, large ones beside the slots and within a budget.

So a few bytes of a file that become half a gigabyte take neither the worker's memory nor the slots of others.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from serve.protocols.http import Refused
from serve.settings import Settings
from zoo.base.errors import ImageSizeError, PocketzooError
from zoo.base.machine import available_memory

__all__ = ["SMALL_BYTES", "Large", "Memory"]

SMALL_BYTES = 32 << 20
"""What an image may take in a slot: about three megapixels."""

_MOST_BYTES = 4 << 30
_MB = 1e6


class Large(PocketzooError):  # noqa: N818  # nothing is wrong with it
    """An image takes more memory than a slot has; it is decoded again where there is more."""


class Memory:
    """The bytes that one worker may decode in. Threads call its methods."""

    def __init__(self, settings: Settings) -> None:
        """`settings.decode_bytes`, of which each worker has its part, and of this each slot a small one."""
        whole = (settings.decode_bytes or min(_MOST_BYTES, available_memory() // 2)) // settings.workers
        self._small = min(SMALL_BYTES, whole // (2 * settings.slots))
        self._most = self._free = whole - settings.slots * self._small
        self._seconds = settings.timeout_seconds
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._mine = threading.local()

    def take(self, count: int, what: str) -> None:
        """Make sure of `count` bytes for decoding `what`.

        Raises:
            Large: more than a slot has, outside of :meth:`large`.
            ImageSizeError: more than there are.
            Refused: 503 if others do not give them back in time.
        """
        if count <= self._small:
            return
        if count > self._most:
            raise ImageSizeError(
                f"the {what} takes up to {count / _MB:.0f} MB of memory to decode, "
                f"at most {self._most / _MB:.0f} MB are there (POCKETZOO_DECODE_BYTES); save it smaller, or as JPEG"
            )
        if not hasattr(self._mine, "held"):
            raise Large
        # Whoever waits keeps the others waiting, or the largest would never have enough.
        with self._turn, self._changed:
            if not self._changed.wait_for(lambda: self._free >= count, self._seconds):
                raise Refused(503, f"other images are being decoded in {self._most / _MB:.0f} MB of memory; try again")
            self._free -= count
        self._mine.held += count

    @contextlib.contextmanager
    def large(self) -> Iterator[None]:
        """Let this thread take what a slot has not; it is given back after the block."""
        self._mine.held = 0
        try:
            yield
        finally:
            with self._changed:
                self._free += self._mine.held
                self._changed.notify_all()
            del self._mine.held
