"""Tests of bench.pytest_plugin: the flag as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.rows import ACCURACY, PYTEST, read
from zoo.base.machine import cores

ROOT = Path(__file__).resolve().parents[2]


def run(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where the development tools are not installed."""
    (output / "hypothesis.py").write_text("raise ImportError('a development tool')")
    path = os.pathsep.join([str(output), os.environ.get("PYTHONPATH", "")])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--benchmark",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:hypothesispytest",
            *arguments,
        ],
        cwd=ROOT,
        env=kept | {"POCKETZOO_OUTPUT": str(output), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_bare_flag_measures_every_artefact_and_the_next_run_compares(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(chain / "tiny-vit-full")
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("latency per artefact", "p99 ms", "accuracy per artefact", "one/model.int8.onnx", "95 % CI"):
        assert text in done.stdout
    rows = read(tmp_path / "bench" / PYTEST)
    assert {(row["artefact"], row["file"], row["batch"], row["threads"]) for row in rows} == {
        ("one", file, batch, threads)
        for file in ("model.onnx", "model.int8.onnx")
        for batch in (1, 8)
        for threads in {1, cores()}
    }
    assert all(20 <= row["n"] <= 200 for row in rows)
    measured = read(tmp_path / "bench" / ACCURACY)
    assert [(row["file"], row["split"]) for row in measured] == [
        ("model.onnx", "validation"),
        ("model.int8.onnx", "validation"),
    ]
    assert all(row["low"] < row["top1"] <= row["high"] for row in measured)
    (saved,) = (tmp_path / "bench" / "pytest").rglob("*.json")
    benchmarks = json.loads(saved.read_text())["benchmarks"]
    assert len(benchmarks) == len(rows)
    assert all(entry["extra_info"]["p50_ms"] > 0 and "batch" in entry["group"] for entry in benchmarks)
    again = run(tmp_path, "--benchmark-compare", "-k", "int8 and batch")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "(NOW)" in again.stdout
    assert "(0001_pocket" in again.stdout


def test_without_artefacts_it_says_what_to_run(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "Traceback" not in done.stdout + done.stderr
    assert "run `make train compress export`" in done.stdout + done.stderr


def test_nothing_to_compare_with(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "model.onnx").write_bytes(b"")
    done = run(tmp_path, "--benchmark-compare")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "to compare with; run `pytest --benchmark` first" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
