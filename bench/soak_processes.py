"""Faults of the server's processes: killed, and told to end."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench.server import serving
from bench.soak_artefacts import write_tiny
from bench.soak_case import Case, Result, answer, connect, head, hurry, load, until

__all__ = ["fault_kill", "fault_sigterm"]

_RECOVERY_SECONDS = 30.0
_CONNECTIONS = 4
_HALF_SENT = 8


def _until_replaced(case: Case, before: set[int]) -> float | None:
    """Seconds until there is a worker that was not there before, and a request gets its answer."""
    return until(lambda: bool(set(case.pids()) - before) and case.serves(), _RECOVERY_SECONDS)


def fault_kill(case: Case) -> Result:
    """SIGKILL to a worker under load: at most its requests in flight fail, and a new worker answers."""
    result = Result(name="kill -9 of a worker")
    recoveries = []
    with load(case, connections=_CONNECTIONS) as client:
        kills = case.many(5, 1)
        for _ in range(kills):
            hurry(case, 2.0, 0.5)
            before = set(case.pids())
            victim = case.server.workers()[0]
            victim.send_signal(signal.SIGKILL)
            passed = _until_replaced(case, before)
            result.expect(passed is not None, f"no answer within {_RECOVERY_SECONDS:g} s of a kill")
            recoveries.append(passed or _RECOVERY_SECONDS)
        hurry(case, 1.0, 0.2)
        found = client.stop()
    errors = result.take(found)
    failed = sum(errors.values())
    result.expect(set(found["status"]) == {"200"}, f"answers {found['status']}, expected 200 only")
    result.expect(
        failed <= kills * _CONNECTIONS, f"{failed} requests failed, at most {_CONNECTIONS} per kill were on their way"
    )
    result.expect(case.server.process.poll() is None, "the server ended")
    result.detail.append(
        f"{kills} kills, {failed} requests failed of {_CONNECTIONS} on their way at each; "
        f"answers again after {', '.join(f'{seconds:.2f}' for seconds in recoveries)} s"
    )
    return result


@contextlib.contextmanager
def _own_server(case: Case) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as name:
        write_tiny(Path(name) / "tiny" / "model.onnx", seed=1)
        with serving(Path(name)) as server:
            yield Case(server=server, picture=case.picture, short=case.short)


def fault_sigterm(case: Case) -> Result:
    """SIGTERM under load: what the server has begun is answered, and it exits with 0."""
    result = Result(name="SIGTERM under load")
    with _own_server(case) as own, contextlib.ExitStack() as opened:
        request = head("/v1/predict", len(own.picture)) + own.picture
        half = [opened.enter_context(connect(own.server.port)) for _ in range(_HALF_SENT)]
        for stream in half:
            stream.sendall(request[:-10])
        with load(own, connections=_CONNECTIONS) as client:
            hurry(case, 2.0, 0.7)
            codes: list[int | None] = []
            ending = threading.Thread(target=lambda: codes.append(own.server.stop()))
            begun = time.perf_counter()
            ending.start()
            hurry(case, 0.5, 0.3)
            for stream in half:
                with contextlib.suppress(ConnectionError):
                    stream.sendall(request[-10:])
            statuses = [answer(stream) for stream in half]
            ending.join()
            took = time.perf_counter() - begun
            found = client.stop()
            logged = own.server.log.read_text(errors="replace").count('"route":"/v1/predict"')
    errors = result.take(found)
    result.counts.update(statuses)
    answered = result.counts["200"]
    result.expect(statuses == ["200"] * _HALF_SENT, f"requests that were on their way: {statuses}")
    result.expect(set(found["status"]) == {"200"}, f"the load got {found['status']}")
    # A keep-alive connection is closed between two requests, and the client may just have sent the next one; clients
    # send such a request again. What counts is that the server answered all it has begun, and its log has.
    result.expect(logged == answered, f"the server began {logged} requests, {answered} were answered")
    result.expect(codes == [0], f"exit code {codes}, expected 0")
    result.detail.append(
        f"all {logged} requests that it began were answered, {_HALF_SENT} of them half-sent at the time; "
        f"{errors.get('reset', 0)} on connections that it was closing were not begun; ended after {took:.2f} s"
    )
    return result
