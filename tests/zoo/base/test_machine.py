"""What the process may use of the machine, and what it has used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zoo.base import machine
from zoo.base.machine import peak_bytes

GIB = 1 << 30
CODE = (
    "from zoo.base.machine import peak_bytes; a = peak_bytes(); b = bytearray(50 << 20); del b; print(a, peak_bytes())"
)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system with 10 GiB to spare and no control groups yet."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {20 << 20} kB\nMemAvailable: {10 << 20} kB\n")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    return tmp_path


def _group(folder, limit, used, cached, *, version=2):
    folder.mkdir(parents=True, exist_ok=True)
    most, usage, inactive = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    (folder / most).write_text(f"{limit}\n")
    (folder / usage).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{inactive} {cached}\n")


def test_without_groups_it_is_the_systems(system):
    assert machine.available_memory() == 10 * GIB


@pytest.mark.parametrize("own", ["/", "/batch/job"])
def test_the_smallest_limit_counts_and_cached_files_are_free(system, own):
    (system / "own").write_text(f"0::{own}\n")
    _group(system / "groups", 4 * GIB, 3 * GIB, GIB // 2)
    assert machine.available_memory() == 1.5 * GIB
    if own != "/":
        _group(system / "groups/batch", "max", 3 * GIB, 0)
        _group(system / "groups/batch/job", 2 * GIB, 1 * GIB, 0)
        assert machine.available_memory() == 1 * GIB
        _group(system / "groups/batch/job", 2 * GIB, 3 * GIB, 0)
        assert machine.available_memory() == 0


def test_control_groups_of_the_first_version(system):
    (system / "own").write_text("5:cpu:/x\n4:hugetlb,memory:/docker/1\n")
    _group(system / "groups/memory/docker/1", 3 * GIB, 2 * GIB, GIB // 4, version=1)
    assert machine.available_memory() == 1.25 * GIB


def test_this_machine():
    assert 0 < machine.available_memory() < 1 << 50


def test_what_was_held_once_counts():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 1 << 20 < before < after - (40 << 20)


def test_a_process_does_not_count_what_started_it():
    ballast = bytearray(200 << 20)
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) < peak_bytes() - len(ballast) // 2
