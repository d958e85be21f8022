"""`pytest --benchmark`: latency of every artefact through pytest-benchmark, with percentiles, and its accuracy.

The bare flag is ours: pytest refuses abbreviations, so it clashes with none of pytest-benchmark's own options, which
keep working. Every run is saved, so that `pytest --benchmark --benchmark-compare` compares with the one before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.artefact_fields import engine_fields
from bench.artefact_table import graphs
from bench.rows import ACCURACY, PYTEST, append, stamp
from zoo.artefact.clock import Timing, summarise
from zoo.artefact.predictor import Predictor
from zoo.base.errors import ArtefactError
from zoo.base.files import output_root
from zoo.base.machine import cores
from zoo.base.tables import plain, rich_table

__all__ = ["BENCHMARKS", "accuracy_row", "timing_row"]

BENCHMARKS = Path(__file__).resolve().parent.parent / "tests" / "bench" / "test_benchmark.py"
_ROWS: list[dict[str, Any]] = []
_ACCURACIES: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the flag."""
    parser.addoption(
        "--benchmark", action="store_true", help="measure the artefacts' latency and accuracy instead of testing"
    )
    parser.addoption(
        "--benchmark-split",
        choices=("validation", "test"),
        default="validation",
        help="images to measure accuracy on; the test split is to be read once, at the end",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Leave out conftest.py, which imports what only tests need: benchmarks run without the development tools."""
    if early_config.known_args_namespace.benchmark:
        early_config.known_args_namespace.noconftest = True


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Run the benchmarks alone, and save what they measure, unless the command line says where or under which name.

    Raises:
        pytest.UsageError: there is no artefact; or --benchmark-compare, and nothing was saved before.
    """
    if not config.getoption("--benchmark"):
        return
    if not graphs(output_root()):
        raise pytest.UsageError(f"no exported artefacts under {output_root()}; run `make train compress export`")
    config.args = [str(BENCHMARKS)]
    # What pytest-benchmark says where -k leaves accuracy alone.
    config.addinivalue_line("filterwarnings", "ignore:Not saving anything, no benchmarks")
    given = [argument.split("=")[0] for argument in config.invocation_params.args]
    if "--benchmark-storage" not in given:
        folder = output_root() / "bench" / "pytest"
        config.option.benchmark_storage = f"file://{folder}"
        if config.getoption("--benchmark-compare") and not any(folder.rglob("*.json")):
            raise pytest.UsageError(f"nothing under {folder} to compare with; run `pytest --benchmark` first")
    if not {"--benchmark-save", "--benchmark-autosave"} & set(given):
        config.option.benchmark_save = "pocketzoo"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the benchmarks out of ordinary test runs."""
    return True if collection_path == BENCHMARKS and not config.getoption("--benchmark") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Benchmarks per artefact and, where they ask for it, on one thread and on all cores."""
    if not metafunc.config.getoption("--benchmark"):
        return
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", sorted({1, cores()}), ids=lambda count: f"threads {count}")
    if "artefact" in metafunc.fixturenames:
        paths = graphs(output_root())
        metafunc.parametrize("artefact", paths, ids=[f"{path.parent.name}/{path.name}" for path in paths])


def timing_row(
    predictor: Predictor, seconds: list[float], *, model: str, batch: int, threads: int, warmup: int
) -> Timing:
    """Remember the durations of one benchmark for the summary and the rows."""
    path = predictor.path
    timing = summarise([[duration * 1000 for duration in seconds]])
    _ROWS.append(
        {
            "artefact": path.parent.name,
            "file": path.name,
            "digest": predictor.digest,
            "graph": predictor.card.inform.graph,
            **engine_fields(predictor),
            "model": model,
            "batch": batch,
            "threads": threads,
            "rounds": timing.n,
            "warmup": warmup,
            **dataclasses.asdict(timing),
        }
    )
    return timing


def accuracy_row(row: dict[str, Any]) -> None:
    """Remember a row of bench.accuracy for the summary and the rows."""
    _ACCURACIES.append(row)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print accuracy, and p50, p95 and p99 by model, threads and batch; keep them as rows."""
    if _ACCURACIES:
        heading = ["<artefact", "<engine", "<data", "<split", "n", "top-1 %", "95 % CI"]
        _show(terminalreporter, "accuracy per artefact", heading, [_accuracy_cells(row) for row in _ACCURACIES])
        _keep(terminalreporter, ACCURACY, _ACCURACIES)
    if _ROWS:
        common = stamp()
        rows = sorted(_ROWS, key=lambda row: (row["model"], row["threads"], row["batch"]))
        heading = ["<model", "threads", "batch", "<artefact", "<engine", "n", "p50 ms", "p95 ms", "p99 ms"]
        _show(terminalreporter, "latency per artefact", heading, [_latency_cells(row) for row in rows])
        _keep(terminalreporter, PYTEST, [row | common for row in rows])


def _accuracy_cells(row: Mapping[str, Any]) -> list[str]:
    counts = [row["dataset"], row["split"], f"{row['n']:,}"]
    return [
        _name(row),
        row["engine"],
        *counts,
        f"{100 * row['top1']:.1f}",
        f"{100 * row['low']:.1f}-{100 * row['high']:.1f}",
    ]


def _latency_cells(row: Mapping[str, Any]) -> list[str]:
    times = [f"{row[key]:.3f}" for key in ("p50_ms", "p95_ms", "p99_ms")]
    return [row["model"], str(row["threads"]), str(row["batch"]), _name(row), row["engine"], str(row["n"]), *times]


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['artefact']}/{row['file']}"


def _show(reporter: pytest.TerminalReporter, title: str, heading: list[str], cells: list[list[str]]) -> None:
    reporter.section(title)
    reporter.write_line(plain(rich_table(heading, cells)))


def _keep(reporter: pytest.TerminalReporter, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    target = output_root() / "bench" / name
    try:
        append(target, rows)
    except (ArtefactError, OSError) as error:
        reporter.write_line(f"rows not kept: {error}", red=True)
    else:
        reporter.write_line(f"rows: {target}")
