"""`pytest --benchmark`: latency of every artefact through pytest-benchmark, with percentiles.

The bare flag is ours: pytest refuses abbreviations, so it clashes with none of pytest-benchmark's own options, which
keep working (`--benchmark-json`, `--benchmark-compare`).
"""

from __future__ import annotations

import datetime
import uuid
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from bench.environment import environment
from bench.rows import PYTEST, append
from bench.table import graphs
from zoo.clock import summarise
from zoo.errors import ArtefactError
from zoo.files import output_root

__all__ = ["BENCHMARKS", "timing_row"]

BENCHMARKS = Path(__file__).resolve().parent.parent / "tests" / "bench" / "test_benchmark.py"
_ROWS: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the flag."""
    parser.addoption("--benchmark", action="store_true", help="measure the artefacts' latency instead of testing")


def pytest_configure(config: pytest.Config) -> None:
    """Run the benchmarks alone."""
    if config.getoption("--benchmark"):
        config.args = [str(BENCHMARKS)]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the benchmarks out of ordinary test runs."""
    return True if collection_path == BENCHMARKS and not config.getoption("--benchmark") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark per artefact."""
    if "artefact" in metafunc.fixturenames and metafunc.config.getoption("--benchmark"):
        paths = graphs(output_root())
        if not paths:
            raise pytest.UsageError(f"no exported artefacts under {output_root()}; run `make train compress export`")
        metafunc.parametrize("artefact", paths, ids=[f"{path.parent.name}/{path.name}" for path in paths])


def timing_row(path: Path, digest: str, seconds: list[float], *, batch: int, threads: int, warmup: int) -> None:
    """Remember the durations of one benchmark for the summary and the rows."""
    timing = summarise([duration * 1000 for duration in seconds])
    _ROWS.append(
        {
            "artefact": path.parent.name,
            "file": path.name,
            "digest": digest,
            "batch": batch,
            "threads": threads,
            "rounds": timing.n,
            "warmup": warmup,
            "n": timing.n,
            "p50_ms": round(timing.p50_ms, 4),
            "p95_ms": round(timing.p95_ms, 4),
            "p99_ms": round(timing.p99_ms, 4),
        }
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print p50, p95 and p99 per artefact, and keep them as rows."""
    if not _ROWS:
        return
    common = {
        "run": uuid.uuid4().hex,
        "environment": environment(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    target = output_root() / "bench" / PYTEST
    try:
        append(target, [row | common for row in _ROWS])
    except (ArtefactError, OSError) as error:
        terminalreporter.write_line(f"rows not kept: {error}", red=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("artefact", no_wrap=True)
    for heading in ("batch", "threads", "n", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in _ROWS:
        times = [f"{row[key]:.3f}" for key in ("p50_ms", "p95_ms", "p99_ms")]
        counts = [str(row[key]) for key in ("batch", "threads", "n")]
        table.add_row(f"{row['artefact']}/{row['file']}", *counts, *times)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    terminalreporter.section("latency per artefact")
    terminalreporter.write_line(capture.get())
    terminalreporter.write_line(f"rows: {target}")
