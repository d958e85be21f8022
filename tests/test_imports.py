"""Which package may know which, and what a process must not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "Contracts: 6 kept, 0 broken." in done.stdout


@pytest.mark.parametrize("package", ["zoo", "compress", "serve", "bench"])
def test_packages_import_nothing_by_themselves(package: str) -> None:
    code = (
        f"import sys, os; known = set(sys.modules); import {package}\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - known})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {package, "zoo"}


def test_no_torch() -> None:
    modules = (
        "zoo.artefact.card",
        "zoo.artefact.preprocess",
        "zoo.artefact.onnx_file",
        "zoo.artefact.predictor",
        "zoo.artefact.clock",
        "zoo.main",
        "zoo.artefact.latency_worker",
        "bench.artefact_table",
    )
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
        "sys.modules['zoo.main'].load_commands()\n"
        "assert 'torch' not in sys.modules, 'the commands'"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
