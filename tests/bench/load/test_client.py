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

from bench.load.client import run
from bench.load.job import Job, prepare, summary
from bench.server import ROOT


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
    assert found["ok_ms"]["n"] == len(seen) > 10
    assert found["bytes_out"] % len(seen) == 0
    assert found["rate"] == pytest.approx(len(seen) / 0.15, rel=0.1)
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
    found, seen = drive("/slow", connections=1, warmup=0.1, seconds=0.1, samples=True)
    assert 3 <= len(found["samples_ms"]) < len(seen) <= 11
    assert min(found["samples_ms"]) > 15
    found, seen = drive("/ok", "/busy", connections=1, warmup=0.1, seconds=0.1, tally="version")
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
    found, _ = drive("/slow", rate=200.0, connections=50, recovered_ms=60.0, timeout=5)
    backlog = arrivals(200, 0.15) * 0.02 - 0.15
    assert backlog - 0.1 < found["recovery_seconds"] < backlog + 1


@pytest.mark.parametrize("path", ["/stall", "/reset", "/busy"])
def test_a_server_that_does_not_recover_costs_no_run(path):
    found, _ = drive(path, rate=50.0, connections=5, recovered_ms=60.0, timeout=0.3)
    assert found["recovery_seconds"] is None
    assert found["offered_rate"] == 50.0


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


def test_a_process_reads_its_job_and_ends_early_on_sigterm():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            stream, _ = listener.accept()
            with stream:
                while stream.recv(65536):
                    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        job = Job(port=listener.getsockname()[1], requests=(prepare("GET", "/", {}),), seconds=60)
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.load.client"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        begun = time.perf_counter()
        process.stdin.write(json.dumps(dataclasses.asdict(job)))
        process.stdin.close()
        process.stdin = None
        time.sleep(1.5)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
        assert time.perf_counter() - begun < 20
        assert set(json.loads(out)["status"]) == {"200"}
        thread.join(5)
