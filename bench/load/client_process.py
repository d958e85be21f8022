"""The load generator as a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.load.load_spec import Job
from bench.serving.server import ROOT
from zoo.base.errors import ArtefactError

__all__ = ["Client", "generate"]


@dataclass(frozen=True, kw_only=True)
class Client:
    """A running load generator."""

    process: subprocess.Popen[str]

    def result(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Wait for its result.

        Raises:
            ArtefactError: it failed.
        """
        out, err = self.process.communicate(timeout=timeout)
        if self.process.returncode:
            raise ArtefactError(f"the load generator failed: {err[-1000:]}")
        found: dict[str, Any] = json.loads(out)
        return found

    def stop(self) -> dict[str, Any]:
        """End it now; its result."""
        self.process.terminate()
        return self.result(timeout=60)


@contextlib.contextmanager
def generate(job: Job) -> Iterator[Client]:
    """Run a job in a process of its own while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.load.client"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        # One that died already has no use for its job; its result says what it died of.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(dataclasses.asdict(job)))
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdin = None  # so that communicate() does not touch it again
        yield Client(process=process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
