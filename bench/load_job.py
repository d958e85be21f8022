"""What a load generator is told, and what it writes down."""

from __future__ import annotations

import base64
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Job", "Record", "prepare", "summary"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one run does."""

    port: int
    requests: tuple[str, ...]
    """Complete HTTP requests, in base64; connections send them in turn."""
    host: str = "127.0.0.1"
    seconds: float = 1.0
    """Time that counts."""
    warmup: float = 0.0
    """Seconds of the same load before that, not counted."""
    connections: int = 1
    """Of a closed loop; of an open one the most it may open."""
    rate: float | None = None
    """Requests per second of an open loop; None: a closed loop."""
    seed: int = 0
    timeout: float = 60.0
    """Seconds for one answer, from when the request was written."""
    tally: str | None = None
    """Count the answers with status 200 by this key of their JSON."""
    recovered_ms: float | None = None
    """After an open loop: send one request after the other on a fresh connection until three in a row are faster."""
    samples: bool = False
    """Return the latencies themselves too."""


@dataclass(kw_only=True)
class Record:
    """What happened. Times are seconds of `time.perf_counter`."""

    begin: float
    end: float
    ok_ms: array[float] = field(default_factory=lambda: array("d"))
    refused_ms: array[float] = field(default_factory=lambda: array("d"))
    other_ms: array[float] = field(default_factory=lambda: array("d"))
    late_ms: array[float] = field(default_factory=lambda: array("d"))
    """How long after its arrival a request was written: the generator's own delay, and that of full connections."""
    status: Counter[int] = field(default_factory=Counter)
    """Of requests that were sent after the warm-up, like the latencies and `tally`."""
    errors: Counter[str] = field(default_factory=Counter)
    """Of the warm-up too: there should be none at all."""
    tally: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    """Answers with status 200 that came in the time that counts."""
    retry_after: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    opened: int = 0


def prepare(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> str:
    """One complete HTTP request for :class:`Job`, with Host and Content-Length."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("latin-1")
    return base64.b64encode(head + body).decode()


def summary(milliseconds: Sequence[float]) -> dict[str, float] | None:
    """Percentiles of latencies; None where there are none."""
    if not len(milliseconds):
        return None
    values = np.asarray(milliseconds, dtype=np.float64)
    marks = np.percentile(values, (50, 90, 95, 99))
    found = dict(zip(("p50", "p90", "p95", "p99"), marks.tolist(), strict=True)) | {"max": float(values.max())}
    return {name: round(value, 4) for name, value in found.items()} | {"n": len(values)}
