"""The check of a new file, in a process of its own with a deadline.

A graph that never ends, takes all memory or crashes its engine ends that process, and the server goes on with what it
has. A worker loads only what has passed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serve.models.folder import Artefact
from serve.models.known import Known, Stamp
from serve.settings import Settings
from zoo.base import errors
from zoo.base.errors import ArtefactError, CheckError, PocketzooError
from zoo.base.machine import available_memory, cores

__all__ = ["Checks", "how", "main"]

_AT_ONCE = 4
"""Checks of files that shall take the place of a loaded model; of others, one at a time when nobody waits."""

_LEAST_MEMORY = 1 << 30
_NICE = 10


def how(settings: Settings) -> dict[str, Any]:
    """What :func:`serve.models.model.load_model` is told of a server."""
    return {
        "threads": settings.threads,
        "callers": min(settings.slots, cores()),
        "engine": settings.engine,
    }


class Checks:
    """The checks of one worker's models, each made once per state of a file. Threads call its methods."""

    def __init__(self, settings: Settings, known: Known) -> None:
        """`settings.check_seconds` for each; 0: files are only read here, and checked by loading them."""
        self._seconds = settings.check_seconds
        self._how = how(settings)
        self._known = known
        self._found: dict[Path, tuple[Stamp, Future[None]]] = {}
        self._running: dict[Path, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._stopped = False
        self._soon = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="check")
        self._later = ThreadPoolExecutor(1, thread_name_prefix="check-later")

    def begin(self, artefact: Artefact, *, soon: bool) -> Future[None]:
        """The check of a file, begun if it was not; `soon`: a model that is asked for waits for it."""
        path = artefact.path
        with self._lock:
            of, found = self._found.get(path, (None, None))
            if found is not None and of != artefact.stamp:
                self._end(path)
                found = None
            if found is None or (soon and found.cancel()):
                pool = self._soon if soon else self._later
                found = pool.submit(self._check, path)
                self._found[path] = (artefact.stamp, found)
            return found

    def _end(self, path: Path) -> None:
        """End the check of a file that is another one by now."""
        self._found[path][1].cancel()
        if path in self._running:
            self._running[path].kill()

    def passed(self, artefact: Artefact) -> None:
        """Wait for the check of a file, which is made now if it was not.

        Raises:
            PocketzooError: it failed.
        """
        if self._seconds and self._known.passed(artefact.path) is None:
            self.wait(artefact, soon=True)

    def wait(self, artefact: Artefact, *, soon: bool) -> None:
        """Wait for the check of a file; arguments as :meth:`begin`.

        Raises:
            PocketzooError: it failed, or was called off as the file is another one by now.
        """
        try:
            self.begin(artefact, soon=soon).result()
        except CancelledError:
            raise ArtefactError(
                f"{artefact.path}: was changed while it was checked; it is checked again when it is complete"
            ) from None

    def forget(self, artefact: Artefact) -> None:
        """Let a file that could not be read for a passing reason be checked again."""
        with self._lock:
            self._found.pop(artefact.path, None)

    def stop(self) -> None:
        """End what runs."""
        with self._lock:
            self._stopped = True
            for process in self._running.values():
                process.kill()
        for pool in (self._soon, self._later):
            pool.shutdown(wait=False, cancel_futures=True)

    def _check(self, path: Path) -> None:
        if not self._seconds:
            from zoo.artefact.onnx_file import read_card

            read_card(path)
        elif self._known.passed(path) is None:
            self._known.note_passed(path, self._in_a_process(path))

    def _in_a_process(self, path: Path) -> str:
        """The digest of a file that passed."""
        command = [sys.executable, "-m", "serve.models.checking", str(path), json.dumps(self._how)]
        root = str(Path(__file__).resolve().parents[2])
        found = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._lock:
            if self._stopped:
                raise ArtefactError(f"{path}: was not checked: the server ends")
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": found},
            )
            self._running[path] = process
        try:
            output, _ = process.communicate(timeout=self._seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise CheckError(
                f"{path}: its check did not end within {self._seconds:g} s (POCKETZOO_CHECK_SECONDS); export it again"
            ) from None
        finally:
            with self._lock:
                if self._running.get(path) is process:
                    del self._running[path]
        return _digest(path, output, process.returncode)


def _digest(path: Path, output: bytes, code: int) -> str:
    try:
        answer = json.loads(output)
    except ValueError:
        why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise ArtefactError(
            f"{path}: the process that checked it ended with {why}, of too little memory or of a graph that crashes "
            "its engine; export it again"
        ) from None
    if "digest" in answer:
        return str(answer["digest"])
    error: PocketzooError = getattr(errors, answer["kind"])(answer["error"])
    raise error from (OSError() if answer["passing"] else None)


def _limit() -> None:
    """Let others go first, and the memory of a graph end before that of the server."""
    from zoo.artefact.engines.runtimes import default_providers

    with contextlib.suppress(OSError, AttributeError):
        os.nice(_NICE)
    if default_providers()[0] != "CPUExecutionProvider":
        return  # CUDA maps the memory of the device into the process, which would count
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        most = max(_LEAST_MEMORY, available_memory() // 2)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def main(arguments: list[str]) -> None:
    """Check the file that the arguments name, as they say, and print its digest or what is wrong with it."""
    from serve.models.model import load_model

    path, options = arguments
    _limit()
    try:
        answer: dict[str, str | bool] = {
            "digest": load_model("model", Path(path), **json.loads(options), once=True).digest
        }
    except PocketzooError as error:
        passing = isinstance(error.__cause__, OSError | MemoryError)
        answer = {"kind": type(error).__name__, "error": str(error), "passing": passing}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
