"""Faults of clients that take their time: with headers, with bodies, or with everything."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from bench.serving.server import watching
from tests.soak.harness import Case, Result, answer, connect, expect_memory, head, load, own_server

__all__ = ["fault_slow_clients"]

_BEGUN = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
_SLACK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """One way to be slow."""

    start: bytes
    """What is sent at once."""
    drips: bool
    """Whether a byte follows every tenth of a second."""
    end: str
    """What the server has to do about it, when the time is over."""


_KINDS = {
    "slow bodies": _Kind(start=head("/v1/predict", 5000), drips=True, end="408"),
    # Together these announce more than POCKETZOO_MAX_BUFFERED_BYTES, which must be nothing until it has come.
    "silent bodies": _Kind(start=head("/v1/predict", 15_000_000), drips=False, end="408"),
    "slow headers": _Kind(start=_BEGUN, drips=True, end="closed"),
    "half-sent headers": _Kind(start=_BEGUN, drips=False, end="closed"),
    "silent connections": _Kind(start=b"", drips=False, end="closed"),
}


def fault_slow_clients(case: Case) -> Result:
    """Clients that never finish their headers or bodies get 408 or are closed in time; others go on being served."""
    result = Result(name="slow clients")
    each, seconds = case.many(50, 20), case.many(30, 2)
    with _with_timeout(case, seconds) as own:
        with own.same_workers(result), load(own, connections=4) as client:
            ended, latest = _all_kinds(own, each, seconds)
            found = client.stop()
        _endless_header(own, result)
    for name, kind in _KINDS.items():
        result.counts.update({f"{status} ({name})": count for status, count in ended[name].items()})
        result.expect(ended[name] == {kind.end: each}, f"{name}: {dict(ended[name])}, expected {each} x {kind.end}")
    errors = result.take(found)
    result.expect(not errors and set(found["status"]) == {"200"}, f"others got {found['status']}, {errors}")
    result.detail.append(
        f"{each} clients of each of {len(_KINDS)} kinds, ended after {latest:.2f} s at the latest (limit {seconds} s); "
        f"{found['rate']:.0f} others/s with p99 {found['ok_ms']['p99']:.1f} ms"
    )
    return result


@contextlib.contextmanager
def _with_timeout(case: Case, seconds: int) -> Iterator[Case]:
    """The shared server in the long form, whose limit is the default; in the short form one with a short limit."""
    if case.short:
        with own_server(case, POCKETZOO_TIMEOUT_SECONDS=f"{seconds}") as own:
            yield own
    else:
        yield case


def _all_kinds(case: Case, each: int, seconds: float) -> tuple[dict[str, Counter[str]], float]:
    """What became of the clients of each kind until the limit and a second were over, and when of the last one."""
    ended: dict[str, Counter[str]] = defaultdict(Counter)
    with contextlib.ExitStack() as opened:
        names: dict[socket.socket, str] = {}
        for name, kind in list(_KINDS.items()) * each:
            stream = opened.enter_context(connect(case.server.port))
            names[stream] = name
            with contextlib.suppress(ConnectionError):
                stream.sendall(kind.start)
        begun, latest = time.perf_counter(), 0.0
        while names and time.perf_counter() - begun < seconds + _SLACK_SECONDS:
            readable, _, _ = select.select(list(names), [], [], 0.1)
            for stream in readable:
                ended[names.pop(stream)][answer(stream)] += 1
                latest = time.perf_counter() - begun
            for stream, name in names.items():
                if _KINDS[name].drips:
                    with contextlib.suppress(OSError):
                        stream.send(b"x")
        ended["left open"].update(names.values())
    return ended, latest


def _endless_header(case: Case, result: Result) -> None:
    """A line of headers that does not end: cut off, and not kept."""
    size, block = 50_000_000, b"y" * (1 << 16)
    with watching(case.server, every=0.02) as watch, connect(case.server.port) as stream:
        stream.sendall(_BEGUN)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < size and not select.select([stream], [], [], 0)[0]:
                sent += stream.send(block)
        found = answer(stream)
    result.counts[f"{found} (endless header)"] += 1
    result.detail.append(f"an endless header: {found} after {sent / 1e6:.2f} MB")
    result.expect(found in ("closed", "400", "431"), f"an endless header got {found}")
    result.expect(sent < size, f"{sent} bytes of one header were taken")
    expect_memory(result, watch.memory)
