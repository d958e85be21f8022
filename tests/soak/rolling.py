"""A rolling update, as the shipped Deployment does it: a new server beside the old one, then the old one's SIGTERM."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench.load.client_process import generate
from bench.load.load_spec import Job, prepare
from bench.serving.server import Server, serving
from tests.soak.artefacts import write_tiny
from tests.soak.harness import Case, Result, answer, connect, head, hurry
from tests.soak.proxy import Proxy, proxying

__all__ = ["fault_rolling_update"]

_CONNECTIONS = 4
_UPLOADS = 8
_DRAIN_SECONDS = 0.3
"""Between the last request that goes to a server and its SIGTERM; the shipped preStop waits 5 s."""


def fault_rolling_update(case: Case) -> Result:
    """Every server is replaced under load, behind a proxy that sends nothing twice: no request is lost."""
    result = Result(name="rolling update behind a proxy")
    updates = case.many(5, 1)
    # As nginx speaks to its servers by default, a connection is for one request. One that is kept may be closed by a
    # server while the next request is written to it, which no server can prevent and every such proxy sends again.
    headers = {"Content-Type": "image/png", "Connection": "close"}
    request = prepare("POST", "/v1/predict", headers, case.picture)
    codes: list[int | None] = []
    with contextlib.ExitStack() as servers:
        folder = Path(servers.enter_context(tempfile.TemporaryDirectory(prefix="pocketzoo-soak-")))
        old = servers.enter_context(_started(folder, 0))
        with proxying(old.port) as proxy:
            job = Job(
                port=proxy.port,
                requests=(request,),
                connections=_CONNECTIONS,
                seconds=600.0,
                tally="version",
                timeout=30,
            )
            with generate(job) as client:
                for number in range(1, updates + 1):
                    hurry(case, 1.0, 0.3)
                    new = servers.enter_context(_started(folder, number))
                    statuses = _replace(case, proxy, old, new, codes)
                    result.counts.update(statuses)
                    result.expect(statuses == ["200"] * _UPLOADS, f"uploads begun before SIGTERM: {statuses}")
                    old = new
                hurry(case, 1.0, 0.3)
                found = client.stop()
    errors = result.take(found)
    lost = sum(errors.values()) + sum(count for status, count in found["status"].items() if status != "200")
    result.expect(lost == 0, f"{lost} requests were lost: answers {found['status']}, errors {errors}")
    result.expect(codes == [0] * updates, f"exit codes {codes} of the old servers, expected 0")
    versions = found["tally"]
    result.expect(len(versions) == updates + 1, f"{len(versions)} versions answered, expected {updates + 1}")
    result.detail.append(
        f"{updates} updates, {sum(found['status'].values())} requests and {updates * _UPLOADS} uploads that were half "
        f"sent at a SIGTERM: {lost} lost; by version: {', '.join(str(count) for count in versions.values())}"
    )
    return result


@contextlib.contextmanager
def _started(folder: Path, number: int) -> Iterator[Server]:
    """A server with a version of its own."""
    write_tiny(folder / f"{number}" / "tiny" / "model.onnx", seed=number)
    with serving(folder / f"{number}") as server:
        yield server


def _replace(case: Case, proxy: Proxy, old: Server, new: Server, codes: list[int | None]) -> list[str]:
    """Let the new server take over; the answers to uploads that the old one had half received by then."""
    proxy.ready = (old.port, new.port)
    hurry(case, 1.0, 0.5)
    request = head("/v1/predict", len(case.picture)) + case.picture
    with contextlib.ExitStack() as opened:
        uploads = [opened.enter_context(connect(old.port)) for _ in range(_UPLOADS)]
        for stream in uploads:
            stream.sendall(request[:-10])
        proxy.ready = (new.port,)
        time.sleep(_DRAIN_SECONDS)
        ending = threading.Thread(target=lambda: codes.append(old.stop()))
        ending.start()
        hurry(case, 0.5, 0.3)
        for stream in uploads:
            with contextlib.suppress(ConnectionError):
                stream.sendall(request[-10:])
        statuses = [answer(stream) for stream in uploads]
        ending.join()
    return statuses
