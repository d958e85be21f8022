"""The processes that a server is compared with: the same pipeline without a server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench.serving.reference import Turn
from bench.serving.server import ROOT
from zoo.base.errors import ArtefactError
from zoo.base.machine import cores

__all__ = ["REFERENCES", "References", "references"]

REFERENCES = ("threads", "wide", "processes")
"""One process whose threads have a one-thread session each; one of one session on all cores; one-thread processes."""


@dataclass(frozen=True, kw_only=True)
class References:
    """Loaded pipelines, at rest until it is their turn."""

    groups: Mapping[str, tuple[subprocess.Popen[str], ...]]

    def measure(self, name: str, turn: Turn) -> dict[str, Any]:
        """Let the processes of one reference work at once: images per second of all, and each one's milliseconds."""
        processes = self.groups[name]
        for process in processes:
            stream = _stream(process.stdin)
            stream.write(json.dumps(dataclasses.asdict(turn)) + "\n")
            stream.flush()
        answers = [_answer(process) for process in processes]
        return {
            "rate": sum(answer["rate"] for answer in answers),
            "samples_ms": [sample for answer in answers for sample in answer["samples_ms"]],
        }


@contextlib.contextmanager
def references(file: Path, image: Path) -> Iterator[References]:
    """Start a process or several for each of REFERENCES, and `single`, one of one thread; ended after the block.

    Raises:
        ArtefactError: one of them failed.
    """
    many = cores()
    shapes = {"threads": (1, many, 1), "wide": (1, 1, many), "processes": (many, 1, 1)}
    started: list[subprocess.Popen[str]] = []
    groups: dict[str, tuple[subprocess.Popen[str], ...]] = {}
    try:
        for name, (processes, threads, session) in shapes.items():
            command = [
                sys.executable,
                "-m",
                "bench.serving.reference",
                str(file),
                str(image),
                str(threads),
                str(session),
            ]
            new = [
                subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for _ in range(processes)
            ]
            started += new
            groups[name] = tuple(new)
        for process in started:
            _answer(process)
        yield References(groups=groups | {"single": groups["processes"][:1]})
    finally:
        for process in started:
            _stream(process.stdin).close()
        for process in started:
            process.wait(30)
            _stream(process.stdout).close()


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    line = _stream(process.stdout).readline()
    if not line:
        raise ArtefactError(f"a pipeline's process ended with exit code {process.wait(30)}; its error is above")
    found: dict[str, Any] = json.loads(line)
    return found
