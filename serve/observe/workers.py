"""Where the metrics of several workers are counted: in files of `bentoml serve`'s PROMETHEUS_MULTIPROC_DIR.

prometheus_client maps them into memory and adds them up. A server with one worker counts in its own memory instead.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

__all__ = ["VARIABLE", "choose_storage", "render"]

_log = logging.getLogger("bentoml.pocketzoo")

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the folder of the workers' files: `<kind>_<process id>.db`."""

_RESERVED = {"counter": 1 << 18, "histogram": 1 << 20}
_RESERVED |= dict.fromkeys(("gauge_livesum", "gauge_livemax", "gauge_livemostrecent"), 1 << 16)
"""Bytes reserved for each file of a worker: a model's stages take 40 kB of its histograms."""


def choose_storage(workers: int) -> None:
    """Let the metrics that are made from now on be counted in this process's memory, or in its files.

    Args:
        workers: of the server; one, or one that finds no room for its files, counts in memory.
    """
    folder = _folder()
    if folder is not None:
        if workers > 1:
            _forget_dead_workers(folder)
        if workers == 1 or not _reserve(folder):
            del os.environ[VARIABLE]
    # It was chosen when prometheus_client was imported, which BentoML may have done.
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]


def render(registry: CollectorRegistry) -> bytes:
    """The metrics of all workers in Prometheus' text format; of one, with those of its process."""
    folder = _folder()
    if folder is None:
        return generate_latest(registry) + generate_latest(REGISTRY)
    _forget_dead_workers(folder)
    merged = CollectorRegistry()
    MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
    return generate_latest(merged)


def _forget_dead_workers(folder: Path) -> None:
    """Forget what killed workers had in their hands; what they have counted still counts."""
    for digits in {path.stem.rpartition("_")[2] for path in folder.glob("gauge_live*.db")}:
        if digits.isdecimal() and not _runs(int(digits)):
            mark_process_dead(int(digits))  # type: ignore[no-untyped-call]


def _runs(process: int) -> bool:
    if os.name != "posix":  # where asking ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's: not a worker of this server any more, but its number is in use
    return True


def _reserve(folder: Path) -> bool:
    """Give this worker's files their disk space; False if there is no room.

    They are mapped into memory, where a disk that is full kills the process (SIGBUS) instead of raising an error.
    """
    paths = {folder / f"{kind}_{os.getpid()}.db": size for kind, size in _RESERVED.items()}
    try:
        for path, size in paths.items():
            with path.open("ab") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        for path in paths:
            path.unlink(missing_ok=True)
        _log.warning("no room for metrics in %s: this worker's are kept apart, in memory; free some space", folder)
        return False
    return True


def _folder() -> Path | None:
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None
