"""Ctrl-C and SIGTERM that wait for the end of a step, so that what is saved then is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["deferred_signals"]


@contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """Defer SIGINT and SIGTERM; a second one is obeyed at once.

    Yields:
        A function to call where stopping is safe; it raises KeyboardInterrupt if a signal came.
    """
    asked = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def stop_if_asked() -> None:
        if asked:
            raise KeyboardInterrupt

    # Only the main thread may handle signals; elsewhere they stop the main thread as they always do.
    main = threading.current_thread() is threading.main_thread()
    old: dict[signal.Signals, Any] = {}
    if main:
        old = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_if_asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
