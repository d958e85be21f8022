"""What every fault of the soak needs: the server under test, raw requests, and how a result looks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.load.client_process import Client, generate
from bench.load.load_spec import Job, prepare
from bench.serving.server import Memory, Server, serving
from tests.soak.artefacts import write_tiny

__all__ = [
    "FLAT_MB",
    "Case",
    "Probe",
    "Result",
    "answer",
    "connect",
    "exchange",
    "expect_memory",
    "head",
    "hurry",
    "load",
    "own_server",
    "probing",
    "until",
    "version",
]

FLAT_MB = 64.0
"""Growth of the workers' resident memory that counts as flat: a few decoded images and the allocator's slack."""

_TIMEOUT = 15.0
_LINGER_RESET = struct.pack("ii", 1, 0)


@dataclass(kw_only=True)
class Result:
    """What a fault did to the server."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    """Answers by status, and requests without one by what became of them."""
    ok: bool = True
    detail: list[str] = field(default_factory=list)
    """Sentences: what was measured, and what was wrong."""

    @property
    def requests(self) -> int:
        """Everything that was sent."""
        return self.counts.total()

    def expect(self, holds: bool, sentence: str) -> None:
        """Fail, with a sentence, unless it holds."""
        if not holds:
            self.ok = False
            self.detail.append(f"NOT OK: {sentence}")

    def expect_no_5xx(self) -> None:
        """Fail if an answer said that the server was at fault."""
        wrong = {status: count for status, count in self.counts.items() if status.startswith("5")}
        self.expect(not wrong, f"answers 5xx: {wrong}")

    def take(self, found: dict[str, object]) -> dict[str, int]:
        """Count what a load generator found; returns its errors."""
        status, errors = found["status"], found["errors"]
        assert isinstance(status, dict)
        assert isinstance(errors, dict)
        self.counts.update(status)
        self.counts.update(errors)
        return errors


@dataclass(frozen=True, kw_only=True)
class Case:
    """A server under test. Its model is `tiny`, file tiny/model.onnx."""

    server: Server
    picture: bytes
    """A PNG that gets an answer."""
    short: bool
    seed: int = 0

    def many(self, long: int, short: int) -> int:
        """The number for this form of the soak."""
        return short if self.short else long

    def pids(self) -> list[int]:
        """Of the workers."""
        return sorted(worker.pid for worker in self.server.workers())

    def serves(self) -> bool:
        """Whether a good request gets its answer."""
        return exchange(self.server.port, head("/v1/predict", len(self.picture)) + self.picture) == "200"

    @contextlib.contextmanager
    def same_workers(self, result: Result) -> Iterator[None]:
        """Expect, after the block, the same processes and an answer."""
        before = self.pids()
        yield
        after = self.pids()
        result.expect(after == before, f"worker processes {before} became {after}")
        result.expect(self.serves(), "a good request gets no answer any more")


def head(path: str, length: int | None, *, media: str = "image/png", more: str = "") -> bytes:
    """The head of a POST; `length` None for a chunked body."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\n{framing}\r\n{more}\r\n".encode(
        "latin-1"
    )


def connect(port: int, *, timeout: float = _TIMEOUT) -> socket.socket:
    """A connection to the server."""
    return socket.create_connection(("127.0.0.1", port), timeout=timeout)


def exchange(port: int, data: bytes, *, then: str = "wait", timeout: float = _TIMEOUT) -> str:
    """Send bytes on a connection of their own: the answer's status, or `closed`, `timeout`, `reset by us`.

    Args:
        port: of the server.
        data: what is sent.
        then: `wait` for an answer; `half`: close this direction first; `reset`: drop the connection.
        timeout: seconds.
    """
    with connect(port, timeout=timeout) as stream:
        # A server that answers early and closes resets what is still being sent.
        with contextlib.suppress(ConnectionError):
            stream.sendall(data)
        if then == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            return "reset by us"
        if then == "half":
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_WR)
        return answer(stream)


def answer(stream: socket.socket) -> str:
    """The status of the next answer, `closed` or `timeout`."""
    received = b""
    try:
        while b"\r\n" not in received:
            if not (data := stream.recv(65536)):
                return "closed"
            received += data
    except TimeoutError:
        return "timeout"
    except ConnectionError:
        return "closed"
    parts = received.split(b" ", 2)
    return parts[1].decode("latin-1") if len(parts) > 1 else "closed"


def version(case: Case) -> str | None:
    """The version that answers a good request; None if it gets no answer 200."""
    with connect(case.server.port) as stream:
        stream.sendall(head("/v1/predict", len(case.picture), more="Connection: close\r\n") + case.picture)
        received = b""
        with contextlib.suppress(OSError):
            while data := stream.recv(65536):
                received += data
    first, _, body = received.partition(b"\r\n\r\n")
    return str(json.loads(body)["version"]) if first.split(b" ")[1:2] == [b"200"] else None


@contextlib.contextmanager
def load(case: Case, *, connections: int, seconds: float = 600.0) -> Iterator[Client]:
    """A closed loop of good requests while the block runs, counted by the version that answers."""
    request = prepare("POST", "/v1/predict", {"Content-Type": "image/png"}, case.picture)
    job = Job(
        port=case.server.port,
        requests=(request,),
        connections=connections,
        seconds=seconds,
        tally="version",
        timeout=30,
    )
    with generate(job) as client:
        yield client


def until(holds: Callable[[], bool], seconds: float, *, every: float = 0.02) -> float | None:
    """Wait until something holds: after how many seconds it did; None if it did not in time."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        if holds():
            return time.perf_counter() - begin
        time.sleep(every)
    return None


def hurry(case: Case, long: float, short: float) -> None:
    """Let the load run for a while."""
    time.sleep(short if case.short else long)


def expect_memory(result: Result, memory: Memory | None, *, more: float = 0.0) -> None:
    """Expect workers that took at most `more` MB beyond what counts as flat, and gave them back."""
    assert memory is not None
    highest, after = memory.highest - memory.before, memory.after - memory.before
    result.detail.append(f"resident {memory.before:.0f} MB, {highest:+.0f} at most, {after:+.0f} after")
    result.expect(highest <= more + FLAT_MB, f"memory grew by {highest:.0f} MB, expected {more + FLAT_MB:.0f} at most")
    result.expect(after <= FLAT_MB, f"{after:.0f} MB of memory were kept, expected {FLAT_MB:.0f} at most")


@contextlib.contextmanager
def own_server(case: Case, **variables: str) -> Iterator[Case]:
    """A server of its own for one fault, with more environment variables, and one tiny artefact."""
    with tempfile.TemporaryDirectory(prefix="pocketzoo-soak-") as name:
        write_tiny(Path(name) / "tiny" / "model.onnx", seed=1)
        with serving(Path(name), **variables) as server:
            yield dataclasses.replace(case, server=server)


@dataclass(kw_only=True)
class Probe:
    """Good requests, one after the other, that :func:`probing` sends."""

    seconds: list[float] = field(default_factory=list)
    """What each took, with its connection."""
    counts: Counter[str] = field(default_factory=Counter)

    def expect(self, result: Result, *, worst: float) -> None:
        """Expect answers 200 to all of them, each within `worst` seconds."""
        result.counts.update(self.counts)
        longest = max(self.seconds, default=0.0)
        result.detail.append(f"{len(self.seconds)} others meanwhile, {longest * 1e3:.0f} ms at worst")
        result.expect(set(self.counts) == {"200"}, f"others got {dict(self.counts)}")
        result.expect(longest <= worst, f"another request took {longest:.1f} s, expected {worst:g} at most")


@contextlib.contextmanager
def probing(case: Case, *, every: float = 0.02) -> Iterator[Probe]:
    """Send good requests, each on a connection of its own, while the block runs."""
    probe, over = Probe(), threading.Event()
    request = head("/v1/predict", len(case.picture)) + case.picture

    def ask() -> None:
        while not over.wait(every):
            begun = time.perf_counter()
            try:
                found = exchange(case.server.port, request)
            except OSError as error:
                found = type(error).__name__
            probe.counts[found] += 1
            probe.seconds.append(time.perf_counter() - begun)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield probe
    finally:
        over.set()
        thread.join()
