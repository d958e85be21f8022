"""Measured rows as JSON lines. A row is complete or absent."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zoo.errors import ArtefactError
from zoo.files import write_bytes

__all__ = ["ACCURACY", "COMPARE", "LATENCY", "LOAD", "PYTEST", "REQUIRED", "TRAINING", "append", "read"]

ACCURACY = "accuracy.jsonl"
COMPARE = "compare.jsonl"
LATENCY = "latency.jsonl"
LOAD = "load.jsonl"
PYTEST = "pytest.jsonl"
TRAINING = "training.jsonl"

_COMMON = frozenset({"artefact", "file", "digest", "environment", "time"})
_WHAT = {"data", "model", "part", "variant", "image_size", "n", "validation_n", "images", "batch", "epochs", "threads"}
_TOOK = {"setup_seconds", "seconds", "round_seconds", "images_per_s", "ratio", "rounds"}
_TIMED = _COMMON | {"run", "batch", "threads", "rounds", "warmup", "n", "p50_ms", "p95_ms", "p99_ms"}
_RUN = {"family", "form", "variant", "precision", "macs", "parameters", "bytes", "difference", "round_ms"}
_LOADED = {"way", "load", "connections", "seconds", "images_per_s", "ratio", "status", "errors", "image", "detail"}
_ANSWERED = {"dataset", "split", "pictures", "top1", "low", "high", "agreement"}
REQUIRED = {
    ACCURACY: _COMMON | {"dataset", "dataset_digest", "split", "n", "top1", "low", "high"},
    COMPARE: _TIMED | _RUN | _ANSWERED | {"convert_seconds", "setup_seconds"},
    LATENCY: _TIMED,
    LOAD: _COMMON | _LOADED | {"run", "rounds", "n", "p50_ms", "p95_ms", "p99_ms"},
    PYTEST: _TIMED,
    TRAINING: frozenset({"run", "environment", "time"}) | _WHAT | _TOOK,
}


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows to a file of one kind (a key of REQUIRED), atomically.

    Raises:
        ValueError: a row lacks a key.
    """
    new = list(rows)
    for row in new:
        if missing := REQUIRED[path.name] - set(row):
            raise ValueError(f"incomplete row for {path.name}: {sorted(missing)} missing")
    old = path.read_bytes() if path.is_file() else b""
    write_bytes(path, old + "".join(json.dumps(row, sort_keys=True) + "\n" for row in new).encode())


def read(path: Path) -> list[dict[str, Any]]:
    """All rows of a file, oldest first; none where there is no file.

    Raises:
        ArtefactError: a line is not a complete row.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ArtefactError(
                f"{path}:{number}: not JSON ({error}); delete the line, or the file to measure again"
            ) from error
        if not isinstance(row, dict) or REQUIRED[path.name] - set(row):
            raise ArtefactError(f"{path}:{number}: an incomplete row; delete the line, or the file to measure again")
        rows.append(row)
    return rows
