"""`bentoml serve` as a user starts it, with a folder of artefacts of its own; and what its worker takes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil

from zoo.base.errors import ArtefactError

__all__ = ["ROOT", "Memory", "Server", "Watch", "serving", "watching"]

ROOT = Path(__file__).resolve().parents[2]
"""The repository: where `bentoml serve` finds its service."""

_READY_SECONDS = 60
_STOP_SECONDS = 60
_MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Resident memory of all workers together, in MB."""

    before: float
    highest: float
    after: float


@dataclass(kw_only=True)
class Watch:
    """Fills while the block of :func:`watching` runs; `memory` is there after it."""

    memory: Memory | None = None


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    models: Path
    log: Path
    ready_seconds: float
    """From the start of the command to the first 200 of /readyz."""

    def workers(self) -> list[psutil.Process]:
        """The processes that answer."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "--worker-id" in child.cmdline():
                    found.append(child)
        return found

    def resident_mb(self) -> float:
        """Resident memory of the workers."""
        total = 0
        for worker in self.workers():
            with contextlib.suppress(psutil.Error):
                total += worker.memory_info().rss
        return round(total / _MB, 1)

    def shared_memory_mb(self) -> dict[str, dict[str, float]]:
        """Memory of a worker (the mean) and of the supervisor: `pss`, pages that processes share counted in parts, and
        `uss`, what a process has for itself.
        """
        of_workers = [worker.memory_full_info() for worker in self.workers()]
        supervisor = psutil.Process(self.process.pid).memory_full_info()
        groups = {"worker_mb": of_workers, "supervisor_mb": [supervisor]}
        return {
            name: {
                kind: round(statistics.fmean(getattr(found, kind) for found in group) / _MB, 1)
                for kind in ("rss", "pss", "uss")
            }
            for name, group in groups.items()
        }

    def get(self, path: str, *, timeout: float = 5.0) -> int | None:
        """Status of a GET; None if there was no answer."""
        return _get(self.port, path, timeout)

    def log_end(self) -> str:
        """The last lines that it printed."""
        return self.log.read_text(errors="replace")[-2000:]

    def stop(self, *, seconds: float = _STOP_SECONDS) -> int | None:
        """Send SIGTERM and wait. Returns the exit code; None if it had to be killed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            for child in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            self.process.wait(5)
            return None


@contextlib.contextmanager
def serving(models: Path, **variables: str) -> Iterator[Server]:
    """Start a server on a free port for the artefacts in `models`; stopped at the end of the block.

    Args:
        models: the folder of artefacts (POCKETZOO_MODELS).
        variables: more environment variables, by name.

    Raises:
        ArtefactError: it ended, or was not ready in a minute; with the end of its log.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("POCKETZOO_", "BENTOML_"))}
    with tempfile.TemporaryDirectory(prefix="pocketzoo-server-") as folder:
        log = Path(folder) / "log.txt"
        port = _free_port()
        begun = time.perf_counter()
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name("bentoml")), "serve", "--port", str(port)],
                cwd=ROOT,
                env=kept | {"POCKETZOO_MODELS": str(models)} | variables,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        server = Server(process=process, port=port, models=models, log=log, ready_seconds=0.0)
        try:
            _wait_until_ready(server)
            ready = round(time.perf_counter() - begun, 3)
            yield Server(process=process, port=port, models=models, log=log, ready_seconds=ready)
        finally:
            server.stop()


@contextlib.contextmanager
def watching(server: Server, *, every: float = 0.1, settle: float = 1.5) -> Iterator[Watch]:
    """Sample the workers' memory while the block runs, and once `settle` seconds after it.

    A server gives memory back once a second at most.
    """
    watch, over = Watch(), threading.Event()
    samples = [server.resident_mb()]

    def sample() -> None:
        while not over.wait(every):
            samples.append(server.resident_mb())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()
        time.sleep(settle)
        after = server.resident_mb()
        watch.memory = Memory(before=samples[0], highest=max(*samples, after), after=after)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _get(port: int, path: str, timeout: float) -> int | None:
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def _wait_until_ready(server: Server) -> None:
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise ArtefactError(f"`bentoml serve` ended with exit code {server.process.returncode}: {server.log_end()}")
        if server.get("/readyz") == 200:
            return
        time.sleep(0.02)
    raise ArtefactError(f"`bentoml serve` was not ready in {_READY_SECONDS} s: {server.log_end()}")
