"""Signals that wait for a safe place, and processes that end with others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

from zoo.base.interrupt import deferred_signals, requests_to_end_interrupt

POOL = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from zoo.base.interrupt import end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(600)
"""


@pytest.fixture
def handlers_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_next_safe_place(number):
    before = signal.getsignal(number)
    reached = False
    with pytest.raises(KeyboardInterrupt), deferred_signals() as stop_if_asked:
        stop_if_asked()
        signal.raise_signal(number)
        reached = True
        stop_if_asked()
    assert reached
    assert signal.getsignal(number) is before


def test_a_second_signal_is_obeyed_at_once():
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one was not obeyed")


def test_other_threads_leave_the_handlers_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with deferred_signals() as stop_if_asked:
            stop_if_asked()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.usefixtures("handlers_restored")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_leaves_blocks_as_ctrl_c_does(number):
    requests_to_end_interrupt()
    ended = []
    with pytest.raises(KeyboardInterrupt):
        try:
            signal.raise_signal(number)
        finally:
            ended.append(number)
    assert ended == [number]


@pytest.mark.usefixtures("handlers_restored")
def test_nohup_stays():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    requests_to_end_interrupt()
    signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        worker = psutil.Process(int(process.stdout.readline()))
        os.kill(process.pid, signal.SIGKILL)
    worker.wait(60)
