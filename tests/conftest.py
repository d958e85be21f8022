"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import HealthCheck, settings
from typer.testing import CliRunner

from zoo.cli.main import app

settings.register_profile(
    "zoo", deadline=None, max_examples=50, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("zoo")


def run_cli(*arguments: str | Path) -> Result:
    """Run a command in this process; errors of this project surface as exceptions."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def _twice_as_fast(parent: Path, children: Sequence[Path]) -> list[object]:
    """Stands for the timing of quantized files, which takes a dozen processes and decides nothing in tests."""
    from compress.quantization.study import Speed

    return [Speed(speedup=2.0, parent_ms=2.0, ms=1.0) for _ in children]


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of artefacts that the whole chain makes of the recipe `tiny`; made once, not to be changed."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETZOO_OUTPUT", str(folder))
        patch.setattr("compress.quantization.study.measure_speed", _twice_as_fast)
        for arguments in (
            ("train", "--recipe", "tiny"),
            ("compress", "--recipe", "tiny"),
            ("export", "--int8", "--recipe", "tiny"),
            ("bench", "accuracy"),
            ("bench", "latency", "--rounds", "1", "--seconds", "0.05"),
        ):
            assert run_cli(*arguments).exit_code == 0
        yield folder


@pytest.fixture
def made(chain: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The chain's folder, as the folder of artefacts of this test."""
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(chain))
    monkeypatch.setattr("compress.quantization.study.measure_speed", _twice_as_fast)
    return chain
