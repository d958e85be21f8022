"""Fixtures shared by all tests."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from filelock import FileLock
from hypothesis import HealthCheck, settings
from typer.testing import CliRunner

from zoo.data.catalogue import DATASETS
from zoo.main import load_commands

# Read by torch when it is imported, here and in the processes that tests start: networks this small are faster without
# threads that wait for each other on shared cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Which engine is faster depends on the machine, and asking both takes seconds: tests of engines choose for themselves.
os.environ["POCKETZOO_ENGINE"] = "onnxruntime"

_SAME_EVERYWHERE = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("tests", max_examples=50, **_SAME_EVERYWHERE)
settings.register_profile("soak", max_examples=1000, **_SAME_EVERYWHERE | {"derandomize": False})
settings.load_profile("tests")

app = load_commands()


def run_cli(*arguments: str | Path) -> Result:
    """Run a command in this process; errors of this project surface as exceptions."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def twice_as_fast(parent: Path, child: Path) -> object:
    """Stands for the timing of quantized files, which takes a dozen processes and decides nothing in tests."""
    from compress.quantize.trials import Speed

    return Speed(speedup=2.0, speedup_low=1.9, speedup_high=2.1, rounds=9, parent_ms=2.0, ms=1.0)


@pytest.fixture(autouse=True, scope="session")
def embedded_once() -> Iterator[None]:
    """Encoding thousands of digits anew for each test would take longer than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("digits", "mnist5k"):
            entry = DATASETS[name]
            patch.setitem(DATASETS, name, dataclasses.replace(entry, open=functools.cache(entry.open)))
        yield


@pytest.fixture(autouse=True, scope="session")
def translations_once() -> Iterator[None]:
    """torch.onnx collects the same table of operators anew for each export, which takes longer than a small network."""
    if "torch" not in sys.modules:  # no test module that was chosen exports
        yield
        return
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of artefacts that the whole chain makes of the recipe `tiny`; made once, not to be changed.

    All workers of pytest-xdist share it: the first that needs it makes it, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / "chain", shared / "chain.done"
    with FileLock(shared / "chain.lock"):
        if not done.exists():
            _make_chain(folder)
            done.touch()
    return folder


def _make_chain(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETZOO_OUTPUT", str(folder))
        patch.setattr("compress.quantize.trials.measure_speed", twice_as_fast)
        for arguments in (
            ("train", "--recipe", "tiny"),
            ("compress", "--recipe", "tiny"),
            ("export", "--int8", "--recipe", "tiny"),
            ("bench", "accuracy"),
            ("bench", "latency", "--rounds", "1", "--seconds", "0.05"),
        ):
            assert run_cli(*arguments).exit_code == 0


@pytest.fixture
def made(chain: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The chain's folder, as the folder of artefacts of this test."""
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(chain))
    monkeypatch.setattr("compress.quantize.trials.measure_speed", twice_as_fast)
    return chain


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of artefacts that the code takes for `output/`; the memory of opened data sets is forgotten."""
    from zoo.data.catalogue import open_dataset

    folder = tmp_path / "output"
    folder.mkdir()
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(folder))
    open_dataset.cache_clear()
    yield folder
    open_dataset.cache_clear()


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """An ONNX file with a complete card."""
    from tests.zoo.factories import write_artefact

    path = tmp_path / "tiny" / "model.onnx"
    write_artefact(path)
    return path
