"""The table of artefacts: what each is, how well it does and how fast it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.rows import ACCURACY, LATENCY, read
from zoo.card import Card
from zoo.errors import ArtefactError
from zoo.files import GRAPH, INT8_GRAPH, sha256_file
from zoo.graph import read_card
from zoo.machine import cores
from zoo.workspace import read_notes, without_data

__all__ = ["Line", "collect", "graphs", "render", "unmeasured"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One ONNX file with its latest measurements."""

    path: Path
    card: Card
    digest: str
    role: str
    accuracy: dict[str, Any] | None
    latency: dict[str, Any] | None

    @property
    def name(self) -> str:
        """Name of the artefact's folder, with `-int8` for the quantized file."""
        return self.path.parent.name + ("-int8" if self.path.name == INT8_GRAPH else "")


def graphs(output: Path) -> list[Path]:
    """Every ONNX file under the folder of artefacts: FP32 before INT8, unpruned before pruned."""
    return sorted(
        [*output.glob(f"*/{GRAPH}"), *output.glob(f"*/{INT8_GRAPH}")],
        key=lambda path: (path.parent.name, path.name != GRAPH),
    )


def collect(output: Path) -> list[Line]:
    """What is known of every ONNX file: its card, and the latest rows measured on exactly these bytes."""
    accuracy = {row["digest"]: row for row in read(output / "bench" / ACCURACY) if row["split"] == "test"}
    digests = {path: sha256_file(path) for path in graphs(output)}
    latency = _latest_run(read(output / "bench" / LATENCY), set(digests.values()))
    lines = []
    for path, digest in digests.items():
        try:
            role = read_notes(path.parent).role
        except ArtefactError:
            role = "model"
        lines.append(
            Line(
                path=path,
                card=read_card(path),
                digest=digest,
                role=role,
                accuracy=accuracy.get(digest),
                latency=latency.get(digest),
            )
        )
    return lines


def _latest_run(rows: list[dict[str, Any]], digests: set[str]) -> dict[str, dict[str, Any]]:
    """Digest -> row of the latest run, at batch 1 and on all cores, that measured every artefact; else of any run."""
    rows = [row for row in rows if row["batch"] == 1 and row["threads"] == cores()]
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["run"], {})[row["digest"]] = row
    complete = [found for found in runs.values() if digests <= set(found)]
    return complete[-1] if complete else {row["digest"]: row for row in rows}


def unmeasured(output: Path) -> tuple[list[Path], list[Path]]:
    """Files that lack a row of test accuracy, and files whose latency was not all measured in one run.

    Latencies are compared with each other, so one missing row means measuring all of them again, side by side.
    """
    lines = collect(output)
    runs = {line.latency["run"] if line.latency else None for line in lines}
    return (
        [line.path for line in lines if line.accuracy is None],
        [] if len(runs) == 1 and None not in runs else [line.path for line in lines],
    )


def render(lines: list[Line]) -> Table:
    """A table for people; `-` where nothing was measured."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("artefact", no_wrap=True)
    for heading in ("test top-1 %", "95 % CI", "n", "MB", "MMACs", "p50 ms", "p95 ms", "vs FP32"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("note")
    by_path = {line.path: line for line in lines}
    for line in lines:
        parent = by_path.get(line.path.parent / GRAPH)
        table.add_row(*_cells(line, parent))
    return table


def _cells(line: Line, parent: Line | None) -> list[str]:
    accuracy, latency = line.accuracy, line.latency
    speed = _speed(line, parent)
    notes = [line.role] if line.role == "control" else []
    if line.path.name == INT8_GRAPH and speed is not None and speed < 1:
        notes.append("slower than its FP32")
    if accuracy is None and without_data(line.path.parent, line.card):
        notes.append("imported: no data set to measure it on")
    trained_on = [entry.config["data"]["name"] for entry in line.card.lineage if "data" in entry.config]
    if accuracy and trained_on and accuracy["dataset"] != trained_on[-1]:
        notes.append(f"on {accuracy['dataset']}")
    return [
        line.name,
        f"{accuracy['top1'] * 100:.1f}" if accuracy else "-",
        f"{accuracy['low'] * 100:.1f}-{accuracy['high'] * 100:.1f}" if accuracy else "-",
        f"{accuracy['n']}" if accuracy else "-",
        f"{line.path.stat().st_size / 1e6:.2f}",
        f"{line.card.inform.macs / 1e6:.1f}",
        f"{latency['p50_ms']:.3f}" if latency else "-",
        f"{latency['p95_ms']:.3f}" if latency else "-",
        f"{speed:.2f}x" if speed is not None else "-",
        ", ".join(notes),
    ]


def _speed(line: Line, parent: Line | None) -> float | None:
    """How many times faster than the FP32 file of the same folder, both measured in one run."""
    if parent is None or not line.latency or not parent.latency or line.latency["run"] != parent.latency["run"]:
        return None
    return float(parent.latency["p50_ms"]) / float(line.latency["p50_ms"])
