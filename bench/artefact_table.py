"""The table of artefacts: what each is, how well it does and how fast it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.artefact_fields import identity
from bench.rows import ACCURACY, LATENCY, read
from zoo.artefact.engines.runtimes import REFERENCE
from zoo.base.files import GRAPH, INT8_GRAPH
from zoo.base.machine import cores
from zoo.base.statistics.intervals import ratio
from zoo.base.tables import rich_table

__all__ = ["Line", "collect", "graphs", "lines_of", "render", "unmeasured"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One ONNX file with its latest measurements."""

    what: Mapping[str, Any]
    """As bench.artefact_fields makes it."""
    accuracy: Mapping[str, Any] | None
    latency: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """Name of the artefact's folder, with `-int8` for the quantized file."""
        return str(self.what["artefact"]) + ("-int8" if self.what["file"] == INT8_GRAPH else "")

    @property
    def role(self) -> str:
        """`model` or `control`."""
        return str(self.what["role"])

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return str(self.what["digest"])


def graphs(output: Path) -> list[Path]:
    """Every ONNX file under the folder of artefacts: FP32 before INT8, unpruned before pruned."""
    return sorted(
        [*output.glob(f"*/{GRAPH}"), *output.glob(f"*/{INT8_GRAPH}")],
        key=lambda path: (path.parent.name, path.name != GRAPH),
    )


def collect(output: Path) -> list[Line]:
    """What is known of every ONNX file: its card, and the latest rows measured on exactly these bytes."""
    found = [identity(path) for path in graphs(output)]
    return lines_of(found, read(output / "bench" / ACCURACY), read(output / "bench" / LATENCY), threads=cores())


def lines_of(
    found: Iterable[Mapping[str, Any]],
    accuracy: Iterable[Mapping[str, Any]],
    latency: Iterable[Mapping[str, Any]],
    *,
    threads: int,
) -> list[Line]:
    """Files with their rows.

    Args:
        found: the files, as bench.artefact_fields makes them, or rows that say the same.
        accuracy: rows of which the latest on the test split count.
        latency: rows of which the latest run at batch 1 counts that measured every file, else the latest row.
        threads: of these latencies.
    """
    found = list(found)
    accurate = {row["digest"]: row for row in accuracy if row["split"] == "test"}
    rows = [row for row in latency if row["batch"] == 1 and row["threads"] == threads]
    timed = _latest_run(rows, {str(what["digest"]) for what in found})
    return [Line(what=what, accuracy=accurate.get(what["digest"]), latency=timed.get(what["digest"])) for what in found]


def _latest_run(rows: Sequence[Mapping[str, Any]], digests: set[str]) -> dict[str, Mapping[str, Any]]:
    runs: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["run"], {})[row["digest"]] = row
    complete = [found for found in runs.values() if digests <= set(found)]
    return complete[-1] if complete else {row["digest"]: row for row in rows}


def unmeasured(output: Path) -> tuple[list[Path], list[Path]]:
    """Files that lack a row of test accuracy, and files whose latency was not all measured in one run.

    Latencies are compared with each other, so one missing row means measuring all of them again, side by side.
    """
    paths, lines = graphs(output), collect(output)
    runs = {line.latency["run"] if line.latency else None for line in lines}
    return (
        [path for path, line in zip(paths, lines, strict=True) if line.accuracy is None],
        [] if len(runs) == 1 and None not in runs else paths,
    )


def render(lines: Sequence[Line]) -> Table:
    """A table for people; `-` where nothing was measured."""
    heading = ["<artefact", "test top-1 %", "95 % CI", "n", "MB", "MMACs", "p50 ms", "p95 ms", "vs FP32", "<note"]
    whole = {line.what["artefact"]: line for line in lines if line.what["file"] == GRAPH}
    return rich_table(heading, [_cells(line, whole.get(line.what["artefact"])) for line in lines], folded=("note",))


def _cells(line: Line, parent: Line | None) -> list[str]:
    accuracy, latency = line.accuracy, line.latency
    speed = _speed(line, parent)
    notes = [line.role] if line.role == "control" else []
    if line.what["file"] == INT8_GRAPH and speed is not None and speed < 1:
        notes.append("slower than its FP32")
    # Rows of before there were refits do not say.
    if refit_of := line.what.get("refit_of"):
        notes.append(f"refit of {refit_of}")
    if accuracy is None and line.what["trained_on"] is None:
        notes.append("imported: no data set to measure it on")
    computed = {str(row["engine"]) for row in (accuracy, latency) if row}
    if computed - {REFERENCE}:
        notes.append(f"by {' and '.join(sorted(computed))}")
    if accuracy and line.what["trained_on"] not in (None, accuracy["dataset"]):
        notes.append(f"on {accuracy['dataset']}")
    return [
        line.name,
        f"{accuracy['top1'] * 100:.1f}" if accuracy else "-",
        f"{accuracy['low'] * 100:.1f}-{accuracy['high'] * 100:.1f}" if accuracy else "-",
        f"{accuracy['n']}" if accuracy else "-",
        f"{line.what['bytes'] / 1e6:.2f}",
        f"{line.what['macs'] / 1e6:.1f}",
        f"{latency['p50_ms']:.3f}" if latency else "-",
        f"{latency['p95_ms']:.3f}" if latency else "-",
        f"{speed:.2f}x" if speed is not None else "-",
        ", ".join(notes),
    ]


def _speed(line: Line, parent: Line | None) -> float | None:
    """How many times as fast as the FP32 file of the same folder, both measured in one run."""
    if parent is None or not line.latency or not parent.latency or line.latency["run"] != parent.latency["run"]:
        return None
    return ratio(parent.latency["round_ms"], line.latency["round_ms"]).value
