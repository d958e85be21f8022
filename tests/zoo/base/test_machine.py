"""The most memory of a process, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from zoo.base.machine import peak_bytes

CODE = (
    "from zoo.base.machine import peak_bytes; a = peak_bytes(); b = bytearray(50 << 20); del b; print(a, peak_bytes())"
)


def test_what_was_held_once_counts():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 1 << 20 < before < after - (40 << 20)


def test_a_process_does_not_count_what_started_it():
    ballast = bytearray(200 << 20)
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) < peak_bytes() - len(ballast) // 2
