import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from serve.observe.exposition import VARIABLE, forget_dead_workers, reserve_files

WORKER = textwrap.dedent(
    """
    import json, sys
    from serve.observe.metrics import Metrics
    from serve.settings import Settings
    from tests.serve.observe.test_metrics import answer, answering, make_call, samples

    metrics = Metrics(Settings())
    for line in sys.stdin:
        if line == "work\\n":
            metrics.in_flight(1)
            metrics.queued(2)
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

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER],
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
        self.kill_only()
        self.bury()

    def kill_only(self) -> None:
        """Leave a zombie, as BentoML does for some seconds."""
        self.process.kill()
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def bury(self) -> None:
        assert self.process.wait() == -signal.SIGKILL
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path):
    """start(): a new worker; all of them share a folder."""
    workers = []

    def one() -> Worker:
        workers.append(Worker(tmp_path))
        return workers[-1]

    yield one
    for worker in workers:
        if worker.process.poll() is None:
            worker.kill()


def test_workers_are_added_up_and_the_killed_leave_counts_but_no_gauges(tmp_path, start):
    (tmp_path / "counter_999999999.db").touch()  # of a worker that was killed before it wrote anything
    one, two, three = start(), start(), start()
    for worker in (one, two, three):
        assert worker.ask("work") == "worked\n"
    found = one.render()
    assert (found["pocketzoo_in_flight",], found["pocketzoo_queued",]) == (3, 6)
    assert (found[REQUESTS], found[INFER], found[WITHIN_A_MILLISECOND]) == (3, 3, 3)
    assert found["pocketzoo_drift_answers", "vit"] == 100
    assert found == two.render()

    for gone, left in ((two, 2), (three, 1)):
        gone.kill_only()
        found = one.render()
        assert (found["pocketzoo_in_flight",], found["pocketzoo_queued",]) == (left, 2 * left)
        assert (found[REQUESTS], found[INFER], found[WITHIN_A_MILLISECOND]) == (3, 3, 3)
        gone.bury()
    alive = one.process.pid
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "counter_0.db",
        f"counter_{alive}.db",
        f"gauge_all_{alive}.db",
        f"gauge_livemax_{alive}.db",
        f"gauge_livemostrecent_{alive}.db",
        f"gauge_livesum_{alive}.db",
        "histogram_0.db",
        f"histogram_{alive}.db",
        "lock",
    ]


def test_disk_space_is_reserved_before_it_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    reserve_files()
    for kind in ("counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_livemostrecent"):
        found = (tmp_path / f"{kind}_{os.getpid()}.db").stat()
        assert found.st_blocks * 512 >= found.st_size >= 1 << 16


def _full(descriptor, offset, size):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_where_there_is_no_room_a_worker_counts_in_memory(tmp_path, monkeypatch, caplog):
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setattr("serve.observe.exposition._IN_MEMORY", memory)
    allocate = os.posix_fallocate

    def full_at_first(descriptor, offset, size):
        monkeypatch.setattr(os, "posix_fallocate", allocate)
        _full(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full_at_first)
    reserve_files()
    (folder,) = memory.iterdir()
    assert os.environ[VARIABLE] == str(folder)
    assert (folder / f"histogram_{os.getpid()}.db").stat().st_size == 4 << 20
    assert list(tmp_path.glob("*.db")) == []
    assert "no room for metrics" in caplog.text


def test_counts_of_the_killed_stay_where_they_are_on_a_full_disk(tmp_path, monkeypatch, start, caplog):
    worker = start()
    worker.ask("work")
    worker.kill()
    before = {path.name for path in tmp_path.iterdir() if not path.name.startswith("gauge_")}
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", _full)
        forget_dead_workers()
    assert {path.name for path in tmp_path.iterdir()} == before
    assert caplog.text.count("stay in files of their own") == 2
    forget_dead_workers()
    assert {path.name for path in tmp_path.iterdir()} == {"counter_0.db", "histogram_0.db", "lock"}


def test_nothing_is_written_where_there_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    reserve_files()
    forget_dead_workers()
    assert list(Path().iterdir()) == []


def test_a_spoilt_file_of_a_killed_worker_does_not_stop_the_others(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "counter_999999999.db").write_bytes(b"\xff\xff\x00\x00" + b"\x7f" * 5000)
    forget_dead_workers()
    assert "counter_999999999.db cannot be read" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {"counter_0.db", "lock"}
