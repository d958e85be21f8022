"""Percentiles, warm-up, and processes that take turns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from zoo.artefact.clock import Timing, alternate, sample_ms, since_start, summarise
from zoo.base.errors import PocketzooError

MEASURING = """
import signal, sys
from zoo.artefact.clock import alternate
from zoo.base.interrupt import requests_to_end_interrupt

# Ignored where the tests run in a shell's background.
signal.signal(signal.SIGINT, signal.default_int_handler)
requests_to_end_interrupt()
list(alternate({"one": ["-c", *sys.argv[1:]]}, 1))
"""
MEASURED = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
ITS_CHILD = """
import os, sys, time
with open(sys.argv[1], "w") as pipe:
    print(os.getppid(), os.getpid(), file=pipe)
time.sleep(600)
"""


def timing(n: int, p50: float, p95: float, p99: float, *, rounds: tuple[float, ...], **interval: float) -> Timing:
    known = {"low_ms": None, "high_ms": None} | interval
    return Timing(n=n, p50_ms=p50, p95_ms=p95, p99_ms=p99, round_ms=rounds, **known)


def test_percentiles_interpolate():
    assert summarise([[float(value) for value in range(101)]]) == timing(101, 50, 95, 99, rounds=(50,))
    assert summarise([[3.0]]) == timing(1, 3, 3, 3, rounds=(3,))
    for nothing in ([], [[]], [[1.0], []]):
        with pytest.raises(ValueError, match="no durations"):
            summarise(nothing)


def test_a_round_of_many_does_not_weigh_more():
    found = summarise([[1.0] * 97, [2.0, 2.0], [4.0]])
    assert found == timing(100, 2, 1, 2.02, rounds=(1, 2, 4), low_ms=1, high_ms=4)


def test_warm_up_calls_are_not_counted():
    calls: list[int] = []
    samples = sample_ms(lambda: calls.append(1), seconds=0, warmup=3, at_least=5)
    assert (len(samples), len(calls)) == (5, 8)
    assert min(samples) >= 0


def test_processes_take_turns():
    commands = {name: ["-c", f"print('noise'); print('{{\"name\": \"{name}\"}}')"] for name in ("a", "b")}
    turns = list(alternate(commands, 2))
    assert [(name, number) for name, number, _ in turns] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert all(found == {"name": name} for name, _, found in turns)


def test_processes_have_environments_of_their_own(monkeypatch):
    monkeypatch.setenv("POCKETZOO_ROUND", "x")
    command = ["-c", "import json, os; print(json.dumps(os.environ.get('POCKETZOO_ROUND')))"]
    changes = {"set": {"POCKETZOO_ROUND": "7"}, "taken": {"POCKETZOO_ROUND": None}}
    found = {name: value for name, _, value in alternate(dict.fromkeys(("as", "set", "taken"), command), 1, changes)}
    assert found == {"as": "x", "set": "7", "taken": None}


def test_a_failing_process_says_why():
    with pytest.raises(PocketzooError, match="measuring x failed: no such model"):
        list(alternate({"x": ["-c", "raise SystemExit('no such model')"]}, 1))


def test_a_process_knows_how_long_ago_it_was_started(monkeypatch):
    script = "import time; time.sleep(0.2); from zoo.artefact.clock import since_start; print(since_start())"
    ((_, _, seconds),) = alternate({"one": ["-c", script]}, 1)
    assert 0.2 < seconds < 60
    monkeypatch.delenv("POCKETZOO_STARTED", raising=False)
    with pytest.raises(PocketzooError, match=r"not started by zoo\.artefact\.clock\.alternate"):
        since_start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_measured_ends_with_the_process_that_measures(tmp_path, number):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-c", MEASURING, MEASURED, ITS_CHILD, str(pipe)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        found = [psutil.Process(int(pid)) for pid in pipe.read_text().split()]
        process.send_signal(number)
    assert len(found) == 2
    assert psutil.wait_procs(found, timeout=60)[1] == []
