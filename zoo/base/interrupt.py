"""How a process ends before its time: after the step that it is in, with what it started, or with what started it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from types import FrameType
from typing import Any

__all__ = ["deferred_signals", "end_with_parent", "requests_to_end_interrupt"]


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


def requests_to_end_interrupt() -> None:
    """Let SIGTERM, and SIGHUP of a terminal that closes, raise KeyboardInterrupt in the main thread, as Ctrl-C does.

    What they do without that ends no `with` and no `finally`, so that processes started by this one go on without it.
    A signal that is ignored (`nohup`) or handled already stays so.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def end_with_parent() -> None:
    """Let this process, started by multiprocessing, end when the one that started it does.

    Killed, that one could not tell its workers, which would wait for work for ever.
    """
    threading.Thread(target=_end_after, args=(parent_process(),), daemon=True).start()


def _end_after(parent: Any) -> None:
    if parent is not None:
        parent.join()
        os._exit(1)
