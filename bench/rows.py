"""Measured rows as JSON lines. A row is complete or absent."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.artefact.environment import environment
from zoo.base.errors import ArtefactError
from zoo.base.files import write_bytes

__all__ = [
    "ACCURACY",
    "ATTACKS",
    "COMPARE",
    "LATENCY",
    "LOAD",
    "PYTEST",
    "RACE",
    "REQUIRED",
    "SCORE",
    "SERVING",
    "SOAK",
    "START",
    "TRAINING",
    "append",
    "now",
    "read",
    "stamp",
    "write",
]

ACCURACY = "accuracy.jsonl"
ATTACKS = "attacks.jsonl"
COMPARE = "compare.jsonl"
LATENCY = "latency.jsonl"
LOAD = "load.jsonl"
PYTEST = "pytest.jsonl"
RACE = "race.jsonl"
SCORE = "score.jsonl"
SERVING = "serving.jsonl"
SOAK = "soak.jsonl"
START = "start.jsonl"
TRAINING = "training.jsonl"

_COMMON = frozenset({"artefact", "file", "digest", "environment", "time"})
_WHAT = {"data", "model", "part", "variant", "image_size", "n", "validation_n", "images", "batch", "epochs", "threads"}
_TOOK = {"setup_seconds", "seconds", "round_seconds", "images_per_s", "ratio", "rounds"}
_KNOWN = _COMMON | {"bytes", "macs", "precision", "role", "trained_on"}
_TIMED = _COMMON | {"run", "batch", "threads", "rounds", "warmup", "n", "p50_ms", "p95_ms", "p99_ms"}
_RUN = {"family", "form", "variant", "precision", "macs", "parameters", "bytes", "difference", "round_ms"}
_SERVED = {"way", "load", "connections", "seconds", "images_per_s", "ratio", "status", "errors", "image", "detail"}
_ANSWERING = frozenset({"url", "model", "version", "digest", "images", "environment", "time", "run"})
_SCENARIO = {"scenario", "metric", "value", "unit", "valid", "seconds", "settings", "status", "errors", "detail"}
_ANSWERED = {"dataset", "split", "pictures", "top1", "low", "high", "agreement"}
_STARTED = {"convert_seconds", "setup_seconds", "startup_seconds", "first_ms", "peak_mb"}
_SURE = {"low_ms", "high_ms", "reference", "ratio", "ratio_low", "ratio_high"}
_PACED = {"pace_seconds", "paced_p50_ms", "paced_low_ms", "paced_high_ms", "paced_p95_ms", "paced_round_ms"}
_HOW = {"engine", "hint", "weights", "load"}
_ATTACKED = {"attack", "n", "failed", "p99_alone_ms", "p99_ms", "times", "grew_mb", "attackers", "ok", "seconds"}
_BEGAN = {"models", "bytes", "known", "rounds", "ready_seconds", "predicted_seconds"}
_RACED = {"contestant", "round", "rounds", "seed", "settings", "allocator", "minutes", "epochs", "curve", "batch", "n"}
_ON = {"data", "data_digest", "model", "weights_digest", "image_size", "threads", "validation_n"}
_CAME = {"top1", "low", "high", "best_top1", "seconds", "user_seconds", "system_seconds", "peak_mb", "images_per_s"}
REQUIRED = {
    ATTACKS: frozenset({"run", "environment", "time", "honest_per_second"}) | _ATTACKED,
    ACCURACY: _KNOWN | {"dataset", "dataset_digest", "split", "n", "top1", "low", "high"},
    COMPARE: _TIMED | _RUN | _ANSWERED | _STARTED | _SURE | _PACED | _HOW,
    LATENCY: _TIMED | _KNOWN,
    LOAD: _ANSWERING | _SCENARIO | {"n", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms", "histogram"},
    PYTEST: _TIMED,
    RACE: frozenset({"run", "environment", "time"}) | _RACED | _ON | _CAME,
    SCORE: _COMMON | {"run", "n", "images_per_s", "ratio"},
    SERVING: _COMMON | _SERVED | {"run", "rounds", "n", "p50_ms", "p95_ms", "p99_ms"},
    SOAK: frozenset({"run", "environment", "time", "fault", "n", "answers", "ok", "detail"}),
    START: _COMMON | _BEGAN | {"run", "load_average", "worker_mb", "supervisor_mb"},
    TRAINING: frozenset({"run", "environment", "time"}) | _WHAT | _TOOK,
}


def now() -> str:
    """The time (UTC), to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def stamp(*packages: str) -> dict[str, Any]:
    """What the rows of one run have in common: its identifier, the environment and the time.

    Args:
        packages: see zoo.artefact.environment.environment.
    """
    return {"run": uuid.uuid4().hex, "environment": environment(*packages), "time": now()}


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to a file of one kind (a key of REQUIRED), atomically.

    Raises:
        ValueError: a row lacks a key.
    """
    new = _lines(path, rows)
    write_bytes(path, (path.read_bytes() if path.is_file() else b"") + new)


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of one kind anew, atomically; errors as :func:`append`."""
    write_bytes(path, _lines(path, rows))


def _lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> bytes:
    lines = []
    for row in rows:
        if missing := REQUIRED[path.name] - set(row):
            raise ValueError(f"incomplete row for {path.name}: {sorted(missing)} missing")
        lines.append(json.dumps(row, sort_keys=True) + "\n")
    return "".join(lines).encode()


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
