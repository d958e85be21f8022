"""What the process may use of the machine, and what it has used."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from zoo.base import machine
from zoo.base.machine import peak_bytes

GIB = 1 << 30
CODE = (
    "from zoo.base.machine import peak_bytes; a = peak_bytes(); b = bytearray(50 << 20); del b; print(a, peak_bytes())"
)
FAULTS = """
import resource, sys
from zoo.base.machine import keep_freed_memory
print(keep_freed_memory() if "keep" in sys.argv else None)
def pages():
    block = bytearray(b"x") * (40 << 20)
for _ in range(3):
    pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    pages()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Pages taken anew for ten blocks of 40 MiB, which is more than glibc ever keeps by itself."""


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


def test_all_memory_is_the_systems_or_what_the_groups_allow(system):
    assert machine.total_memory() == 20 * GIB
    (system / "own").write_text("0::/batch/job\n")
    _group(system / "groups/batch", 4 * GIB, 3 * GIB, 0)
    _group(system / "groups/batch/job", "max", 3 * GIB, 0)
    assert machine.total_memory() == 4 * GIB


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


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 64), ("200000 100000", 2), ("150000 100000", 2)])
def test_cores_are_those_that_the_groups_give_time_for(system, monkeypatch, quota, expected):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.cores() == 64
    (system / "own").write_text("0::/pod/container\n")
    inside = system / "groups/pod/container"
    inside.mkdir(parents=True)
    (inside / "cpu.max").write_text(f"{quota}\n")
    assert machine.cores() == expected
    # The group above has less, and a share of a core is one.
    for least, found in (("3200000 100000", min(32, expected)), ("50000 100000", 1)):
        (system / "groups/pod/cpu.max").write_text(f"{least}\n")
        assert machine.cores() == found


@pytest.mark.parametrize(("quota", "expected"), [("-1", 64), ("400000", 4), ("20000", 1)])
def test_cores_of_control_groups_of_the_first_version(system, monkeypatch, quota, expected):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    (system / "own").write_text("5:memory:/x\n4:cpu,cpuacct:/docker/1\n0::/\n")
    inside = system / "groups/cpu/docker/1"
    inside.mkdir(parents=True)
    (inside / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (inside / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.cores() == expected


def test_cores_are_no_more_than_the_affinity(system, monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    (system / "own").write_text("0::/\n")
    (system / "groups").mkdir()
    (system / "groups/cpu.max").write_text("800000 100000\n")
    assert machine.cores() == 3


def test_this_machine():
    assert machine.cores() >= 1
    assert 0 < machine.available_memory() < 1 << 50


def test_what_was_held_once_counts():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 1 << 20 < before < after - (40 << 20)


def test_a_process_does_not_count_what_started_it():
    ballast = bytearray(200 << 20)
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) < peak_bytes() - len(ballast) // 2


def _faults(*arguments, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    kept, pages = done.stdout.split()
    return kept, int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_used_again():
    pages = 10 * (40 << 20) // os.sysconf("SC_PAGESIZE")
    assert _faults()[1] >= pages
    kept, taken = _faults("keep")
    assert kept == "True"
    assert taken < pages / 50


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_the_environment_decides_what_the_allocator_keeps(variable):
    kept, taken = _faults("keep", **{variable: "131072"})
    assert kept == "False"
    assert taken >= 10 * (40 << 20) // os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_variables_do_the_same_for_other_programs():
    _, taken = _faults(**machine.allocator_variables(kept=True))
    assert taken < 10 * (40 << 20) // os.sysconf("SC_PAGESIZE") / 50
    assert set(machine.allocator_variables(kept=False).values()) == {None}


def test_torch_may_be_kept_from_huge_pages(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    machine.keep_freed_memory()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
