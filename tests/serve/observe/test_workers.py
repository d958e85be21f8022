import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from prometheus_client import values

from serve.observe.metrics import Metrics
from serve.observe.workers import VARIABLE, choose_storage
from serve.settings import Settings
from tests.serve.observe.test_metrics import make_call, samples

WORKER = textwrap.dedent(
    """
    import json, sys
    from serve.observe.metrics import Metrics
    from serve.settings import Settings
    from tests.serve.observe.test_metrics import answer, answering, make_call, samples

    metrics = Metrics(Settings(workers=int(sys.argv[1])))
    for line in sys.stdin:
        if line == "work\\n":
            metrics.in_flight.inc()
            metrics.queued.set(2)
            metrics.record(make_call(infer=1.0), route="/v1/predict", status=200, images=1)
            answer(metrics, answering(), 100)
            print("worked", flush=True)
        else:
            found = samples(metrics.render())
            print(json.dumps([[*name, value] for name, value in found.items()]), flush=True)
    """
)

REQUESTS = ("pocketzoo_requests_total", "vit", "/v1/predict", "200")
INFER = ("pocketzoo_stage_seconds_count", "vit", "infer")
WITHIN_A_MILLISECOND = ("pocketzoo_stage_seconds_bucket", "0.001", "vit", "infer")


class Worker:
    """A process that counts, and renders when it is asked."""

    def __init__(self, folder, workers):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER, str(workers)],
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str) -> str:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def render(self) -> dict[tuple[str, ...], float]:
        return {tuple(name): value for *name, value in json.loads(self.ask("render"))}

    def kill(self) -> None:
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path):
    """start(): a new worker; all of them share a folder."""
    workers = []

    def one(of: int = 3) -> Worker:
        workers.append(Worker(tmp_path, of))
        return workers[-1]

    yield one
    for worker in workers:
        if worker.process.poll() is None:
            worker.kill()


def test_workers_are_added_up_and_the_killed_leave_counts_but_no_gauges(tmp_path, start):
    one, two, three = start(), start(), start()
    for worker in (one, two, three):
        assert worker.ask("work") == "worked\n"
    found = one.render()
    assert (found["pocketzoo_in_flight",], found["pocketzoo_queued",]) == (3, 6)
    assert (found[REQUESTS], found[INFER], found[WITHIN_A_MILLISECOND]) == (3, 3, 3)
    assert found["pocketzoo_drift_answers", "vit"] == 100
    assert found == two.render()

    for gone, left in ((two, 2), (three, 1)):
        gone.kill()
        found = one.render()
        assert (found["pocketzoo_in_flight",], found["pocketzoo_queued",]) == (left, 2 * left)
        assert (found[REQUESTS], found[INFER], found[WITHIN_A_MILLISECOND]) == (3, 3, 3)
    live = {path.stem.rpartition("_")[2] for path in tmp_path.glob("gauge_*.db")}
    assert live == {str(one.process.pid)}


def test_a_worker_that_starts_forgets_the_killed_before_it(start):
    one, two = start(), start()
    for worker in (one, two):
        worker.ask("work")
    one.kill()
    again = start()
    two.kill()
    assert again.render()["pocketzoo_in_flight",] == 0
    assert again.render()[REQUESTS] == 2


def test_a_single_worker_writes_no_files(tmp_path, start):
    worker = start(of=1)
    worker.ask("work")
    assert worker.render()[REQUESTS] == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A folder for the files of several workers; where to count is chosen anew after the test."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    yield tmp_path
    monkeypatch.delenv(VARIABLE, raising=False)
    values.ValueClass = values.get_value_class()


def test_disk_space_is_reserved_before_it_is_mapped(storage):
    choose_storage(2)
    for kind in ("counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_livemostrecent"):
        found = (storage / f"{kind}_{os.getpid()}.db").stat()
        assert found.st_blocks * 512 >= found.st_size >= 1 << 16


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_where_there_is_no_room_a_worker_counts_in_memory(storage, monkeypatch, caplog, number):
    def full(descriptor, offset, size):
        raise OSError(number, "no room")

    monkeypatch.setattr(os, "posix_fallocate", full)
    metrics = Metrics(Settings(workers=2))
    metrics.record(make_call(infer=1.0), route="/v1/predict", status=200, images=1)
    assert samples(metrics.render())[REQUESTS] == 1
    assert list(storage.iterdir()) == []
    assert "no room for metrics" in caplog.text
