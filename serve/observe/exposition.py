"""The metrics of all workers as one text, and what becomes of the files of those that were killed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["VARIABLE", "forget_dead_workers", "render", "reserve_files"]

_log = logging.getLogger("bentoml.pocketzoo")

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that names the folder of the workers' files: `<kind>_<process id>.db`."""

_KINDS = ("counter", "histogram", "summary")
_NOBODY = 0
"""The process id under which the counts of all killed workers are kept."""

_RESERVED = {"counter": 1 << 20, "histogram": 4 << 20, "gauge_livesum": 1 << 16, "gauge_livemax": 1 << 16}
_RESERVED |= {"gauge_livemostrecent": 1 << 18, "gauge_all": 1 << 16}
"""Bytes reserved for each file of a worker: a model's stages take 40 kB of its histograms."""
_IN_MEMORY = Path("/dev/shm")  # noqa: S108  # for a folder that only its owner may enter

_TRIES = 3
_PAUSE_SECONDS = 0.01


def render(registry: CollectorRegistry) -> bytes:
    """The metrics of all workers, BentoML's included, in Prometheus' text format.

    Without a folder of workers' files: those of `registry`, and of the process.
    """
    folder = _folder()
    if folder is None:
        return generate_latest(registry) + generate_latest(REGISTRY)
    forget_dead_workers()
    with _lock(folder, fcntl.LOCK_SH):
        for _ in range(_TRIES - 1):
            # A worker that starts, or ends, at this moment: its files have no size yet, or are gone already.
            with contextlib.suppress(struct.error, FileNotFoundError):
                return _merged()
            time.sleep(_PAUSE_SECONDS)
        return _merged()


def reserve_files() -> None:
    """Give this worker's files their disk space, before anything is counted.

    They are mapped into memory, where a disk that is full kills the process (SIGBUS) instead of raising an error. Where
    it is full already, this worker counts in a folder in memory, which the others do not add up.
    """
    folder = _folder()
    if folder is None:
        return
    try:
        _reserve(folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        other = Path(tempfile.mkdtemp(prefix="pocketzoo-metrics-", dir=_IN_MEMORY))
        os.environ[VARIABLE] = str(other)
        _log.warning("no room for metrics in %s: this worker's are kept apart, in %s; free some space", folder, other)
        _reserve(other)


def _reserve(folder: Path) -> None:
    for kind, size in _RESERVED.items():
        path = folder / f"{kind}_{os.getpid()}.db"
        try:
            _allocate(path, size)
        except OSError:
            path.unlink()
            raise


def _allocate(path: Path, size: int) -> None:
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _merged() -> bytes:
    merged = CollectorRegistry()
    MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
    return generate_latest(merged)


def forget_dead_workers() -> None:
    """Delete the gauges of workers that were killed, and gather their counts in one file.

    Counts must not go back when a worker goes, and a worker that is killed every minute must not fill the folder.
    """
    folder = _folder()
    if folder is None:
        return
    with _lock(folder, fcntl.LOCK_EX):
        for kind in _KINDS:
            if dead := _of_dead_workers(folder, kind):
                _gather(dead, folder / f"{kind}_{_NOBODY}.db")
        for path in _of_dead_workers(folder, "gauge_*"):
            path.unlink(missing_ok=True)


def _gather(paths: list[Path], target: Path) -> None:
    """Add the values in `paths` to those in `target`, and delete them."""
    sums: defaultdict[str, float] = defaultdict(float)
    for path in (target, *paths):
        # Empty: of a worker that was killed before it wrote anything.
        if not path.exists() or not path.stat().st_size:
            continue
        try:
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
                sums[key] += value
        except (RuntimeError, ValueError, struct.error) as error:
            _log.warning("metrics of a killed worker are lost: %s cannot be read: %s", path, error)
    fresh = target.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    try:
        # Each entry has its key, up to 8 bytes of padding and 20 of numbers.
        _allocate(fresh, 8 + sum(len(key.encode()) + 28 for key in sums))
    except OSError as error:
        fresh.unlink(missing_ok=True)
        _log.warning("the metrics of %d killed workers stay in files of their own: %s", len(paths), error)
        return
    file = MmapedDict(str(fresh))  # type: ignore[no-untyped-call]
    for key, value in sums.items():
        file.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    file.close()  # type: ignore[no-untyped-call]
    fresh.replace(target)
    for path in paths:
        path.unlink()


def _of_dead_workers(folder: Path, kind: str) -> list[Path]:
    found = ((path, path.stem.rpartition("_")[2]) for path in folder.glob(f"{kind}_*.db"))
    return [path for path, digits in found if digits.isdecimal() and not _runs(int(digits))]


def _runs(process: int) -> bool:
    if process == _NOBODY:
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's: not a worker of this server any more, but its number is in use
    try:
        stat = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return not Path("/proc/self/stat").exists()
    # proc_pid_stat(5): the state follows the name, in parentheses. BentoML takes seconds to bury a killed worker.
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


@contextlib.contextmanager
def _lock(folder: Path, kind: int) -> Iterator[None]:
    """Hold the folder's lock, so that nobody reads while counts are in two files at once."""
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, kind)
        yield


def _folder() -> Path | None:
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None
