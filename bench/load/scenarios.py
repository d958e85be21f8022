"""A running server in the scenarios of MLPerf Inference: single stream, multi-stream, offline and server.

The rules are those of https://github.com/mlcommons/inference_policies (table of scenarios, and "LoadGen operation").
What differs: runs of `seconds` and `queries` instead of at least 600 s and 24,576 to 270,336 queries, no estimate of
early stopping, and the load comes through HTTP from whichever machine runs this.

A query of several samples (multi-stream) is several requests at the same time, one image each on a connection of its
own: it stands for cameras that see the same moment, it takes the same route as all other scenarios, and no limit of
images per request has a say in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.load.client_process import generate
from bench.load.histogram import Latencies
from bench.load.load_spec import Job
from bench.load.search import Search, Step, search
from bench.load.server_under_test import Answer, Target, ask, requests_of
from bench.rows import now, stamp
from zoo.artefact.environment import load_average
from zoo.base.errors import ArtefactError, UsageError, unknown_name
from zoo.base.progress import note

__all__ = ["SCENARIOS", "LoadConfig", "Run", "measure"]

SCENARIOS = ("single-stream", "multi-stream", "offline", "server")
"""In the order of measuring: the throughput of `offline` is where the search of `server` begins."""

_ABOVE = 1.1
"""Times the throughput is the highest rate of the search: a short measurement of it may be too low."""
_STEP = 0.25
"""Part of `seconds` that a run of the search takes, if that is enough for its queries."""
_STEP_QUERIES = 100
_WARM = 0.1
"""Part of `seconds` that `offline` warms up for."""
_OPEN_CONNECTIONS = 512
_PATIENCE = 50
_ENOUGH_FOR_P99_9 = 1000
"""Queries; of fewer, that percentile is the maximum."""


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How to measure."""

    scenarios: tuple[str, ...] = SCENARIOS
    p99_ms: float = 50.0
    """Bound of the scenario `server`, milliseconds; MLPerf's for ResNet-50 was 15."""
    seconds: float = 10.0
    """Each scenario takes at least so long; a run of the search a quarter of it."""
    queries: int = 100
    """At least, in each scenario."""
    streams: int = 8
    """Images of a query of the scenario `multi-stream`."""
    connections: int = 16
    """Requests on their way at a time in the scenario `offline`."""
    warmup: float = 1.0
    """Seconds of the same load before each run that counts."""
    timeout: float = 20.0
    """Seconds for one answer."""
    seed: int = 0
    """Of the Poisson arrivals; run k of the search has seed + k."""

    def __post_init__(self) -> None:
        for name in self.scenarios:
            if name not in SCENARIOS:
                raise unknown_name("scenario", name, (*SCENARIOS, "all"))
        for name, low in (("queries", 1), ("streams", 1), ("connections", 1), ("seed", 0), ("warmup", 0)):
            if getattr(self, name) < low:
                raise UsageError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("p99_ms", "seconds", "timeout"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be positive, got {value:g}")


Run = Callable[[Job], dict[str, Any]]
"""Does a job: bench.load.client.run in a process of its own, or a test's stand-in."""


def in_a_process(job: Job) -> dict[str, Any]:
    """Let a process of its own do a job; what it found."""
    with generate(job) as client:
        return client.result()


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What the scenarios share."""

    target: Target
    config: LoadConfig
    requests: tuple[str, ...]
    do: Run

    def run(self, scenario: str, **settings: Any) -> dict[str, Any]:
        """One run.

        Raises:
            ArtefactError: the server stopped answering.
        """
        target, config = self.target, self.config
        given: dict[str, Any] = {"seconds": config.seconds, "warmup": config.warmup, "timeout": config.timeout}
        job = Job(
            host=target.host,
            port=target.port,
            tls=target.tls,
            requests=self.requests,
            histogram=True,
            patience=_PATIENCE,
            **given | settings,
        )
        found = self.do(job)
        if found["gave_up"] or not found["status"]:
            answers = sum(found["status"].values())
            raise ArtefactError(
                f"{target.url} stopped answering in the scenario {scenario}, after {answers} answers "
                f"({_counted(found['errors'])}); this scenario has no row, those before it are kept; start the server "
                "again with `bentoml serve`, and measure again"
            )
        return found


def _counted(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in errors.items()) or "no error"


def measure(
    target: Target, images: Sequence[tuple[str, bytes]], config: LoadConfig, *, do: Run = in_a_process
) -> Iterator[dict[str, Any]]:
    """Measure a running server: a complete row per scenario, as soon as it is there.

    Args:
        target: the server.
        images: name and bytes of each image; they are sent in turn.
        config: how.
        do: what does a job.

    Raises:
        ArtefactError: the server is not there, refuses the images, stops answering or changes its model; or no rate
            holds the bound.
    """
    answer = ask(target, images[0][1])
    bench = _Bench(target=target, config=config, requests=requests_of(target, [data for _, data in images]), do=do)
    common = _common(target, images, config) | {
        "model": answer.model,
        "version": answer.version,
        "digest": answer.digest,
    }
    throughput = None
    for scenario in SCENARIOS:
        if scenario not in config.scenarios:
            continue
        note(f"{scenario}: {answer.model} ({answer.version}) at {target.url}")
        if scenario == "server":
            row = _server(bench, throughput)
        else:
            row = _WAYS[scenario](bench)
            throughput = row["value"] if scenario == "offline" else throughput
        _expect_same(scenario, target, images[0][1], answer)
        yield common | row | {"time": now()}


def _common(target: Target, images: Sequence[tuple[str, bytes]], config: LoadConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(config)
    del settings["scenarios"]
    common = stamp()
    return common | {
        "environment": common["environment"] | {"of": "the load generator"},
        "url": target.url,
        "images": {
            "count": len(images),
            "bytes": sum(len(data) for _, data in images),
            "first": images[0][0],
        },
        "settings": settings,
        "load_average": load_average(),
    }


def _expect_same(scenario: str, target: Target, image: bytes, before: Answer) -> None:
    try:
        now = ask(target, image)
    except ArtefactError as error:
        raise ArtefactError(
            f"after the scenario {scenario}, which has no row (those before it are kept), the server does not answer "
            f"as it did: {error}"
        ) from error
    if now != before:
        raise ArtefactError(
            f"{target.url}: {before.model} was version {before.version} when the scenario began and {now.model} "
            f"version {now.version} when it ended; the scenario has no row, measure again"
        )


def _single(bench: _Bench) -> dict[str, Any]:
    found = bench.run("single-stream", burst=1, connections=1, queries=bench.config.queries)
    return _row("single-stream", found, metric="p90 latency", percent=90)


def _multi(bench: _Bench) -> dict[str, Any]:
    streams = bench.config.streams
    found = bench.run("multi-stream", burst=streams, connections=streams, queries=bench.config.queries)
    return _row("multi-stream", found, metric=f"p99 latency of {streams} images", percent=99)


def _offline(bench: _Bench, *, part: float = 1.0) -> dict[str, Any]:
    """Two short runs first: they warm up, and say how many images last for the time."""
    config, count = bench.config, bench.config.connections
    for share, least in ((_WARM, count), (part, config.queries)):
        rate = bench.run("offline", total=count, connections=config.connections, warmup=0.0)["rate"]
        count = max(least, math.ceil(rate * config.seconds * share))
    found = bench.run("offline", total=count, connections=config.connections, warmup=0.0)
    return _row("offline", found, metric="throughput", percent=None)


_WAYS: dict[str, Callable[[_Bench], dict[str, Any]]] = {
    "single-stream": _single,
    "multi-stream": _multi,
    "offline": _offline,
}


def _server(bench: _Bench, throughput: float | None) -> dict[str, Any]:
    if throughput is None:
        throughput = _offline(bench, part=_STEP)["value"]
    found = search(lambda *given: _step(bench, *given), highest=_ABOVE * throughput)
    steps = [_told(step) for step in found.steps]
    if found.best is None:
        raise ArtefactError(_no_rate(bench, found))
    row = _row("server", found.best.found, metric="highest rate", percent=None)
    detail = {"steps": steps, "highest_tried": round(_ABOVE * throughput, 3), "late_ms": found.best.found["late_ms"]}
    return row | {"value": round(found.best.rate, 3), "unit": "queries/s", "detail": row["detail"] | detail}


def _step(bench: _Bench, rate: float, number: int, confirming: bool) -> Step:
    config = bench.config
    found = bench.run(
        "server",
        rate=rate,
        connections=_OPEN_CONNECTIONS,
        seconds=config.seconds * (1 if confirming else _STEP),
        queries=config.queries if confirming else min(_STEP_QUERIES, config.queries),
        seed=config.seed + number,
    )
    p99 = Latencies(found["histogram"]).percentile(99)
    step = Step(
        rate=rate, holds=_all_answered(found) and p99 <= config.p99_ms, p99_ms=p99, confirming=confirming, found=found
    )
    unanswered = "" if _all_answered(found) else f", not answered: {_unanswered(found)}"
    note(
        f"server: {rate:.1f}/s {'for full length ' if confirming else ''}{'holds' if step.holds else 'misses'} "
        f"{config.p99_ms:g} ms: p99 {p99:.2f} ms{unanswered}"
    )
    return step


def _told(step: Step) -> dict[str, Any]:
    kept = ("status", "errors", "rate", "seconds")
    return {
        "rate": round(step.rate, 3),
        "p99_ms": step.p99_ms,
        "holds": step.holds,
        "confirming": step.confirming,
        "n": sum(step.found["status"].values()),
        "found": {name: step.found[name] for name in kept},
    }


def _no_rate(bench: _Bench, found: Search) -> str:
    lowest = min((step for step in found.steps if not step.holds), key=lambda step: step.rate)
    why = "" if _all_answered(lowest.found) else f" and {_unanswered(lowest.found)} requests without an answer 200"
    return (
        f"{bench.target.url}: no rate keeps the p99 within {bench.config.p99_ms:g} ms: at the lowest that was tried, "
        f"{lowest.rate:.2f} queries/s, it is {lowest.p99_ms:.2f} ms{why}; the scenario server has no row; give a "
        "higher --p99, or more --seconds where the machine has pauses"
    )


def _all_answered(found: dict[str, Any]) -> bool:
    return _unanswered(found) == 0


def _unanswered(found: dict[str, Any]) -> int:
    wrong: int = sum(count for status, count in found["status"].items() if status != "200")
    return wrong + int(sum(found["errors"].values()))


def _row(scenario: str, found: dict[str, Any], *, metric: str, percent: float | None) -> dict[str, Any]:
    kept = Latencies(found["histogram"])
    if not len(kept):
        raise ArtefactError(
            f"{scenario}: no query was answered with status 200; got {_counted(found['status'] | found['errors'])}; "
            "this scenario has no row"
        )
    return {
        "scenario": scenario,
        "metric": metric,
        "value": found["rate"] if percent is None else kept.percentile(percent),
        "unit": "images/s" if percent is None else "ms",
        "valid": _all_answered(found),
        "seconds": found["seconds"],
        "n": len(kept),
        "p50_ms": kept.percentile(50),
        "p90_ms": kept.percentile(90),
        "p99_ms": kept.percentile(99),
        "p99_9_ms": kept.percentile(99.9) if len(kept) >= _ENOUGH_FOR_P99_9 else None,
        "max_ms": kept.highest,
        "histogram": found["histogram"],
        "status": found["status"],
        "errors": found["errors"],
        "detail": {"images_per_s": found["rate"], "connections": found["connections"]},
    }
