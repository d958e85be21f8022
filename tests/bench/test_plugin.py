"""Tests of bench.plugin: the flag as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.rows import PYTEST, read

ROOT = Path(__file__).resolve().parents[2]


def run(output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--benchmark", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=os.environ | {"POCKETZOO_OUTPUT": str(output)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_bare_flag_prints_percentiles_per_artefact(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(chain / "tiny-vit-full")
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "latency per artefact" in done.stdout
    assert "p50 ms" in done.stdout
    assert "4 passed" in done.stdout
    rows = read(tmp_path / "bench" / PYTEST)
    assert {(row["file"], row["batch"], row["n"]) for row in rows} == {
        (file, batch, 200) for file in ("model.onnx", "model.int8.onnx") for batch in (1, 8)
    }
    assert all(row["artefact"] == "one" for row in rows)


def test_without_artefacts_it_says_what_to_run(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode != 0
    assert "run `make train compress export`" in done.stdout + done.stderr
