"""The processes that a server is compared with: the same pipeline without a server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.serving.reference import Turn, load, take
from zoo.base.errors import ArtefactError
from zoo.base.machine import cores

__all__ = ["REFERENCES", "References", "references"]

REFERENCES = ("threads", "wide", "processes")
"""One process whose threads have a one-thread session each; one of one session on all cores; one-thread processes."""


@dataclass(frozen=True, kw_only=True)
class References:
    """Loaded pipelines, at rest until it is their turn."""

    groups: Mapping[str, tuple[ProcessPoolExecutor, ...]]
    """Of one process each."""

    def measure(self, name: str, turn: Turn) -> dict[str, Any]:
        """Let the processes of one reference work at once: images per second of all, and each one's milliseconds.

        Raises:
            ArtefactError: one of them ended.
        """
        try:
            answers = [answer.result() for answer in [pool.submit(take, turn) for pool in self.groups[name]]]
        except BrokenProcessPool as error:
            raise ArtefactError(f"a process of the pipeline {name!r} ended; its error is above") from error
        return {
            "rate": sum(answer["rate"] for answer in answers),
            "samples_ms": [sample for answer in answers for sample in answer["samples_ms"]],
        }


@contextlib.contextmanager
def references(file: Path, image: Path, engine: str) -> Iterator[References]:
    """Start a process or several for each of REFERENCES, and `single`, one of one thread; ended after the block.

    Raises:
        ArtefactError: one of them failed.
    """
    many, context = cores(), get_context("spawn")
    shapes = {"threads": (1, many, 1), "wide": (1, 1, many), "processes": (many, 1, 1)}
    with contextlib.ExitStack() as started:

        def start(threads: int, session_threads: int) -> ProcessPoolExecutor:
            given = (file, image, engine, threads, session_threads)
            return started.enter_context(ProcessPoolExecutor(1, context, initializer=load, initargs=given))

        groups = {
            name: tuple(start(threads, session) for _ in range(processes))
            for name, (processes, threads, session) in shapes.items()
        }
        found = References(groups=groups | {"single": groups["processes"][:1]})
        for name in REFERENCES:
            # So that all of them are loaded before the first turn that counts.
            found.measure(name, Turn(what="image", seconds=1e-3, warmup=0.0))
        yield found
