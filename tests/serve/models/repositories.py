"""Repositories for tests, which end with the test."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from serve.models.repository import Repository
from serve.settings import Settings


@contextlib.contextmanager
def serving(root: Path, **settings: Any) -> Iterator[tuple[Repository, list[tuple[str, str, str]]]]:
    """A started repository of `root` that after its start only looks for changes when it is told to, and its events."""
    events: list[tuple[str, str, str]] = []
    repository = Repository(
        Settings(models=root, **{"poll_seconds": 0, "threads": 1, "check_seconds": 0.0} | settings),
        on_event=lambda *event: events.append(event),
    )
    repository.start()
    if not repository._settings.poll_seconds:
        repository._thread.join()
    try:
        yield repository, events
    finally:
        repository.stop()


def eventually(condition: Callable[[], bool], *, seconds: float = 10.0) -> bool:
    """Whether `condition` becomes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
