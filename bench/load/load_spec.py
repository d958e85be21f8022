"""What a load generator is told, and what it writes down."""

from __future__ import annotations

import base64
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from bench.load.histogram import Latencies

__all__ = ["Job", "Record", "arrivals", "lasting", "prepare", "summary"]

_CHUNK = 4096

Kept: TypeAlias = "array[float] | Latencies"
"""Latencies in milliseconds: each of them, or counted in a histogram."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one run does."""

    port: int
    requests: tuple[str, ...]
    """Complete HTTP requests, in base64; connections send them in turn."""
    host: str = "127.0.0.1"
    tls: bool = False
    seconds: float = 1.0
    """Time that counts."""
    warmup: float = 0.0
    """Seconds of the same load before that, not counted."""
    connections: int = 1
    """Of a closed loop; of all others the most it may open."""
    rate: float | None = None
    """Requests per second of an open loop, with Poisson arrivals."""
    burst: int | None = None
    """Requests of a query, sent at once; the next query follows when the last of them is answered."""
    total: int | None = None
    """Requests that are all due at the beginning, however long they take; `seconds` is not used."""
    queries: int = 0
    """At least so many arrivals of an open loop, or queries of a burst, after the warm-up, however long they take."""
    patience: int = 0
    """Give up after so many requests in a row without any answer; 0: never."""
    seed: int = 0
    timeout: float = 60.0
    """Seconds for one answer, from when the request was written."""
    tally: str | None = None
    """Count the answers with status 200 by this key of their JSON."""
    recovered_ms: float | None = None
    """After an open loop: send one request after the other on a fresh connection until three in a row are faster."""
    samples: bool = False
    """Return the latencies themselves too."""
    histogram: bool = False
    """Count latencies in a histogram of fixed size, and return it encoded; of a burst, those of whole queries."""

    def __post_init__(self) -> None:
        kinds = [name for name in ("rate", "burst", "total") if getattr(self, name) is not None]
        if len(kinds) > 1 or (self.samples and self.histogram):
            raise ValueError(f"a job is of one kind, and keeps samples or a histogram; got {kinds}")

    @property
    def closed_loop(self) -> bool:
        """Whether every connection is always busy."""
        return self.rate is None and self.burst is None and self.total is None


@dataclass(kw_only=True)
class Record:
    """What happened. Times are seconds of `time.perf_counter`."""

    begin: float
    end: float
    ok_ms: Kept
    refused_ms: Kept
    other_ms: Kept
    late_ms: Kept
    """How long after its arrival a request was written: the generator's own delay, and that of full connections."""
    status: Counter[int] = field(default_factory=Counter)
    """Of requests that were sent after the warm-up, like the latencies and `tally`."""
    errors: Counter[str] = field(default_factory=Counter)
    """Of the warm-up too: there should be none at all."""
    tally: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    """Answers with status 200 that came in the time that counts."""
    last: float
    """When the last answer came to a request that counts."""
    queries: int = 0
    """Bursts that were sent after the warm-up and are over, answered or not."""
    query_ms: Kept
    """Of those whose requests were all answered with status 200: from sending to the last answer."""
    retry_after: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    opened: int = 0


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Seconds from the start to each arrival of a Poisson process: exponential gaps, the same for the same seed."""
    random, last = np.random.default_rng(seed), 0.0
    while True:
        for gap in random.exponential(1 / rate, size=_CHUNK).tolist():
            last += gap
            yield last


def lasting(job: Job) -> float:
    """Seconds that count: those of the job, or more where the arrivals of an open loop take longer to be enough."""
    if job.rate is None or not job.queries:
        return job.seconds
    counted = (moment - job.warmup for moment in arrivals(job.rate, job.seed) if moment >= job.warmup)
    last = next(moment for number, moment in enumerate(counted, start=1) if number == job.queries)
    return max(job.seconds, last + 1e-6)


def prepare(method: str, path: str, headers: Mapping[str, str], body: bytes = b"", *, host: str = "localhost") -> str:
    """One complete HTTP request for :class:`Job`, with Host and Content-Length."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("latin-1")
    return base64.b64encode(head + body).decode()


def summary(milliseconds: Sequence[float] | Latencies) -> dict[str, float] | None:
    """Percentiles of latencies; None where there are none."""
    if not len(milliseconds):
        return None
    if isinstance(milliseconds, Latencies):
        found = {f"p{percent}": milliseconds.percentile(percent) for percent in (50, 90, 95, 99)}
        return found | {"max": milliseconds.highest, "n": len(milliseconds)}
    values = np.asarray(milliseconds, dtype=np.float64)
    marks = np.percentile(values, (50, 90, 95, 99))
    found = dict(zip(("p50", "p90", "p95", "p99"), marks.tolist(), strict=True)) | {"max": float(values.max())}
    return {name: round(value, 4) for name, value in found.items()} | {"n": len(values)}
