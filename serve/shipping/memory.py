"""How much memory a container needs for the models that are in it: measured, and computed from the settings."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.prediction import SMALL_BYTES
from serve.settings import PREFIX, Settings
from serve.shipping.sources import PROJECT
from zoo.base.errors import ArtefactError

__all__ = ["Memory", "measure_memory"]

_BYTES_PER_PIXEL = 20
"""Of the costliest kind, WebP: what zoo.artefact.decode asks for."""
_MARGIN = 1.1
"""Fragments of the heap, connections, and what is written to /tmp where that is memory."""
_STEP = 64 << 20
_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes."""

    imported: int
    """A process of the server without any model."""
    models: int
    """All that a worker keeps loaded, the largest ones, each having answered in all slots at the same time."""
    largest: int
    """Of it, the largest model, which a process of its own loads to check it."""
    loaded: int
    """POCKETZOO_LOADED_BYTES: all that a worker keeps loaded, as it counts: their files, twice for two sessions."""
    decoding: int
    """POCKETZOO_DECODE_BYTES: the largest image that is accepted, beside small ones in all slots."""
    bodies: int
    """Requests that a worker receives at the same time."""
    workers: int = 1

    @property
    def supervisor(self) -> int:
        """What starts the workers."""
        return self.imported

    @property
    def check(self) -> int:
        """The process that checks a model, at most."""
        return self.imported + self.largest

    @property
    def worker(self) -> int:
        """A worker that waits."""
        return self.imported + self.models

    @property
    def request(self) -> int:
        """What a container takes that waits, in steps of 64 MiB."""
        return _rounded(self.supervisor + self.workers * self.worker)

    @property
    def limit(self) -> int:
        """What a container may take with the costliest requests, and a tenth more, in steps of 64 MiB."""
        workers = self.workers * (self.worker + self.bodies)
        return _rounded(_MARGIN * (self.supervisor + self.check + workers + self.decoding))


def measure_memory(paths: Sequence[Path], *, engine: str, cores: int, settings: Settings) -> Memory:
    """Load the models in a process of its own, as a worker does, and read its peak.

    Args:
        paths: of ONNX files, of which as many as a worker keeps are loaded, the largest first.
        engine: as zoo.artefact.predictor.Predictor takes it.
        cores: of the container; so many threads an inference has, and so many slots a worker.
        settings: of the server in the container.

    Raises:
        ArtefactError: a model cannot be loaded there.
    """
    kept = sorted(paths, key=lambda path: path.stat().st_size, reverse=True)[: settings.max_loaded]
    job = {"paths": [str(path) for path in kept], "engine": engine, "threads": cores, "slots": cores}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PROJECT), environment.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "serve.shipping.memory_process"]
    try:
        done = subprocess.run(
            command, input=json.dumps(job), capture_output=True, text=True, timeout=_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise ArtefactError(f"the models' memory: not measured in {_SECONDS} s; ship fewer of them") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ArtefactError(f"the models' memory: expected to load {len(kept)} as a worker does, got {reason}")
    imported, *peaks = json.loads(done.stdout.splitlines()[-1])
    return Memory(
        imported=imported,
        models=peaks[-1] - imported,
        largest=peaks[0] - imported,
        loaded=2 * sum(path.stat().st_size for path in kept),
        decoding=settings.max_pixels * _BYTES_PER_PIXEL + max(2, cores) * SMALL_BYTES,
        bodies=settings.max_buffered_bytes,
        workers=settings.workers,
    )


def _rounded(size: float) -> int:
    return math.ceil(size / _STEP) * _STEP
