"""The load generator against a server whose behaviour is known."""

import asyncio
import contextlib
import dataclasses
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from bench.load.client import _Run, run
from bench.load.client_process import generate
from bench.load.load_spec import Job, prepare, summary
from bench.load.recovery import recovery
from bench.serving.server import ROOT
from zoo.base.errors import ArtefactError


class Scripted:
    """An HTTP server that answers by the path: /ok, /busy, /close, /reset, /stall, /slow (20 ms, one at a time)."""

    def __init__(self):
        self.seen = []
        self.one_at_a_time = asyncio.Lock()
        self.tasks = []
        self.writers = []

    async def serve(self, listener):
        """Accept on a socket; not asyncio.start_server, which leaves transports open when it is closed in the act."""
        while True:
            accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
            reader, writer = await asyncio.open_connection(sock=accepted)
            self.writers.append(writer)
            self.tasks.append(asyncio.create_task(self.handle(reader, writer)))

    async def close(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self.writers), return_exceptions=True)

    async def handle(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                path = head.split(b" ")[1].decode()
                self.seen.append((path, body))
                if path == "/stall":
                    await asyncio.sleep(10)
                if path == "/reset":
                    break
                if path == "/slow":
                    async with self.one_at_a_time:
                        await asyncio.sleep(0.02)
                answer = b'{"version": "v1"}'
                status = b"503 Busy\r\nRetry-After: 1" if path == "/busy" else b"200 OK"
                more = b"Connection: close\r\n" if path == "/close" else b""
                writer.write(b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, more, len(answer), answer))
                await writer.drain()
                if path == "/close":
                    break


def drive(*paths, **settings):
    """Run a job against a new Scripted; its result, and what the server saw."""

    async def both():
        scripted = Scripted()
        requests = tuple(prepare("POST", path, {"X-A": "b"}, b"12345") for path in paths)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            job = Job(port=listener.getsockname()[1], requests=requests, **{"seconds": 0.15} | settings)
            accepting = asyncio.create_task(scripted.serve(listener))
            found = await run(job)
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
        await scripted.close()
        return found, scripted.seen

    return asyncio.run(both())


def arrivals(rate, seconds, seed=0):
    return int((np.cumsum(np.random.default_rng(seed).exponential(1 / rate, size=10_000)) < seconds).sum())


def test_a_closed_loop_keeps_its_connections_and_counts_every_answer():
    found, seen = drive("/ok", connections=3)
    assert found["connections"] == 3
    assert found["status"] == {"200": len(seen)}
    assert found["errors"] == {}
    assert found["ok_ms"]["n"] == len(seen) > 3
    assert found["bytes_out"] % len(seen) == 0
    # Of each connection one answer may come after the end, which the rate does not count.
    assert len(seen) - 3 <= round(found["rate"] * found["seconds"]) <= len(seen)
    assert {body for _, body in seen} == {b"12345"}


def test_requests_go_out_in_turn():
    _, seen = drive("/ok?a", "/ok?b", connections=1)
    assert [path for path, _ in seen[:4]] == ["/ok?a", "/ok?b", "/ok?a", "/ok?b"]


def test_refusals_are_apart_from_answers():
    found, seen = drive("/ok", "/busy", connections=1)
    assert found["status"]["503"] == found["retry_after"] == found["refused_ms"]["n"]
    assert found["status"]["200"] == found["ok_ms"]["n"]
    assert sum(found["status"].values()) == len(seen)


def test_the_warm_up_is_not_in_the_latencies():
    found, seen = drive("/slow", connections=1, warmup=0.1, seconds=0.5, samples=True)
    # One request at a time, of 20 ms each: the time bounds their number from above on any machine.
    assert 1 <= len(found["samples_ms"]) < len(seen)
    assert len(found["samples_ms"]) <= 0.5 / 0.02 + 1
    assert min(found["samples_ms"]) > 15
    found, seen = drive("/ok", "/busy", connections=1, warmup=0.1, seconds=0.5, tally="version")
    assert found["status"] == {"200": found["ok_ms"]["n"], "503": found["refused_ms"]["n"]}
    assert found["retry_after"] == found["refused_ms"]["n"]
    assert found["tally"] == {"v1": found["ok_ms"]["n"]}
    assert sum(found["status"].values()) < len(seen)


def test_a_connection_that_ends_is_counted_and_replaced():
    found, seen = drive("/ok", "/reset", connections=1)
    assert found["errors"] == {"reset": found["connections"] - 1} or found["errors"] == {"reset": found["connections"]}
    assert found["status"]["200"] + found["errors"]["reset"] == len(seen)
    found, seen = drive("/close", connections=2)
    assert found["errors"] == {}
    assert found["status"] == {"200": len(seen)}
    assert found["connections"] >= len(seen)


def test_an_answer_that_never_comes_is_a_timeout():
    found, _ = drive("/stall", connections=2, timeout=0.15)
    assert found["errors"]["timeout"] >= 2
    assert found["status"] == {}
    assert found["ok_ms"] is None


def test_an_open_loop_sends_at_every_arrival_of_its_seed():
    found, seen = drive("/ok", rate=300.0, seconds=0.3, connections=50, seed=5)
    assert len(seen) == arrivals(300, 0.3, seed=5) == found["ok_ms"]["n"]
    assert found["late_ms"]["n"] == len(seen)


def test_waiting_for_a_stalling_server_counts_as_latency():
    # 30 arrivals in 0.15 s for a server of 50 per second: the last one waits for the others, on one connection or many.
    for connections in (1, 50):
        found, seen = drive("/slow", rate=200.0, connections=connections)
        count = arrivals(200, 0.15)
        assert len(seen) == count == found["ok_ms"]["n"]
        assert found["ok_ms"]["max"] > count * 20 - 150 - 25
        assert found["connections"] <= connections


def test_answers_are_counted_by_a_key_of_their_json():
    found, seen = drive("/ok", connections=1, tally="version")
    assert found["tally"] == {"v1": len(seen)}


def test_recovery_is_timed_from_the_end_of_the_load():
    # Only an idle server answers within 300 ms; the first fresh request waits for the backlog of more.
    found, _ = drive("/slow", rate=400.0, connections=100, recovered_ms=300.0, timeout=30)
    backlog = arrivals(400, 0.15) * 0.02 - 0.15
    assert backlog > 0.6
    assert backlog - 0.1 < found["recovery_seconds"] < 30


@pytest.mark.parametrize("path", ["/stall", "/reset", "/busy"])
def test_a_server_that_does_not_recover_costs_no_run(path):
    found, _ = drive(path, rate=50.0, connections=5, recovered_ms=60.0, timeout=0.3)
    assert found["recovery_seconds"] is None
    assert found["offered_rate"] == 50.0


def test_what_is_due_and_never_answered_is_counted():
    found, seen = drive("/stall", rate=300.0, connections=4, timeout=0.15, seconds=0.3)
    assert found["errors"]["unsent"] > 0
    assert found["errors"]["timeout"] >= 4
    assert sum(found["errors"].values()) == arrivals(300, 0.3)
    assert found["connections"] >= len(seen)


def test_connections_that_are_being_opened_count_once():
    async def opened():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            request = prepare("GET", "/", {})
            job = Job(port=listener.getsockname()[1], requests=(request,), rate=1.0, connections=3)
            state = _Run(job, asyncio.get_running_loop())
            counts = []
            for _ in range(5):
                state.arrive([time.perf_counter()])
                counts.append(len(state.all))
                await asyncio.sleep(0)
            while state.opening:
                await asyncio.sleep(0.001)
            state.give_up()
            await asyncio.sleep(0)
            return counts, dict(state.record.errors)

    assert asyncio.run(opened()) == ([1, 2, 3, 3, 3], {"timeout": 3, "unsent": 2})


def test_recovery_is_asked_for_with_tls_too():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse():
            with contextlib.suppress(OSError):
                while True:
                    stream, _ = listener.accept()
                    heard.append(stream.recv(1))
                    # Not an answer that TLS knows, so that the handshake fails.
                    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    stream.close()

        heard = []
        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        request = prepare("GET", "/", {})
        job = Job(port=listener.getsockname()[1], requests=(request,), tls=True, timeout=0.5, recovered_ms=1e4)
        assert asyncio.run(recovery(job, time.perf_counter())) is None
        assert set(heard) == {b"\x16"}
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_no_server_is_an_error_of_connecting():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = Job(port=free.getsockname()[1], requests=(prepare("GET", "/", {}),), seconds=0.1)
        found = asyncio.run(run(job))
    assert found["errors"]["connect"] >= 1
    assert found["status"] == {}


def test_percentiles():
    assert summary([]) is None
    found = summary([float(value) for value in range(101)])
    assert found == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "max": 100.0, "n": 101}


@contextlib.contextmanager
def answering():
    """A server of one connection: its listener, an event at the first request that is answered, and its thread."""
    answered = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                stream, _ = listener.accept()
                with stream:
                    while stream.recv(65536):
                        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                        answered.set()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener, answered, thread


def test_a_process_ends_when_its_parent_is_killed():
    with answering() as (listener, answered, thread):
        job = Job(port=listener.getsockname()[1], requests=(prepare("GET", "/", {}),), seconds=60)
        script = (
            "import json, sys, time\n"
            "from bench.load.load_spec import Job\n"
            "from bench.load.client_process import generate\n"
            "given = json.loads(sys.argv[1])\n"
            "with generate(Job(**given | {'requests': tuple(given['requests'])})): time.sleep(60)\n"
        )
        parent = subprocess.Popen([sys.executable, "-c", script, json.dumps(dataclasses.asdict(job))], cwd=ROOT)
        try:
            assert answered.wait(40)
        finally:
            parent.kill()
            parent.wait()
        # The server's connection ends with the client, long before its job does.
        thread.join(30)
        assert not thread.is_alive()


def test_a_process_that_dies_at_once_has_its_last_words(tmp_path, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no module named uvloop >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    job = Job(port=1, requests=(prepare("GET", "/", {}, bytes(1_000_000)),))
    with generate(job) as client, pytest.raises(ArtefactError, match="load generator failed: no module named uvloop"):
        client.result()


def test_a_process_reads_its_job_and_ends_early_on_sigterm():
    with answering() as (listener, answered, thread):
        job = Job(port=listener.getsockname()[1], requests=(prepare("GET", "/", {}),), seconds=60)
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.load.client"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        process.stdin.write(json.dumps(dataclasses.asdict(job)))
        process.stdin.close()
        process.stdin = None
        assert answered.wait(40)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=40)
        assert set(json.loads(out)["status"]) == {"200"}
        thread.join(5)
