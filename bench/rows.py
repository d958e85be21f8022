"""Measured rows as JSON lines, one file per kind. A row is as its kind's model (bench.row_schema) has it, or absent."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench import row_schema as schema
from zoo.artefact.environment import environment
from zoo.base.errors import ArtefactError
from zoo.base.files import write_bytes

__all__ = [
    "ABLATION",
    "ACCURACY",
    "ATTACKS",
    "COMPARE",
    "KINDS",
    "LATENCY",
    "LISTING",
    "LOAD",
    "PYTEST",
    "RACE",
    "SCORE",
    "SERVING",
    "SOAK",
    "START",
    "TRAINING",
    "Kind",
    "append",
    "lacking",
    "now",
    "read",
    "stamp",
    "unclean",
    "write",
]

ABLATION = "ablation.jsonl"
ACCURACY = "accuracy.jsonl"
ATTACKS = "attacks.jsonl"
COMPARE = "compare.jsonl"
LATENCY = "latency.jsonl"
LISTING = "listing.jsonl"
LOAD = "load.jsonl"
PYTEST = "pytest.jsonl"
RACE = "race.jsonl"
SCORE = "score.jsonl"
SERVING = "serving.jsonl"
SOAK = "soak.jsonl"
START = "start.jsonl"
TRAINING = "training.jsonl"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the rows of a file are."""

    model: type[schema.Row]
    command: str
    """Measures them."""


KINDS = {
    ABLATION: Kind(model=schema.Ablation, command="pocketzoo train --recipe ablate"),
    ACCURACY: Kind(model=schema.Accuracy, command="pocketzoo bench accuracy"),
    ATTACKS: Kind(model=schema.Attack, command="python -m tests.soak.attacks"),
    COMPARE: Kind(model=schema.Compare, command="pocketzoo bench compare"),
    LATENCY: Kind(model=schema.Latency, command="pocketzoo bench latency"),
    LISTING: Kind(model=schema.Listing, command="pocketzoo bench score --names"),
    LOAD: Kind(model=schema.Load, command="pocketzoo bench load"),
    PYTEST: Kind(model=schema.Pytest, command="pytest --benchmark"),
    RACE: Kind(model=schema.Race, command="pocketzoo bench race"),
    SCORE: Kind(model=schema.Score, command="pocketzoo bench score"),
    SERVING: Kind(model=schema.Serving, command="pocketzoo bench serving"),
    SOAK: Kind(model=schema.Fault, command="python -m tests.soak.run"),
    START: Kind(model=schema.Start, command="pocketzoo bench start"),
    TRAINING: Kind(model=schema.Training, command="pocketzoo bench training"),
}
"""By the file's name."""


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
    """Add rows to a file of one kind (a key of KINDS), atomically.

    Raises:
        ArtefactError: a row is not what its kind has to be; none was written.
    """
    new = []
    for number, row in enumerate(rows, start=1):
        text = json.dumps(row, sort_keys=True)
        where = f"{path}: new row {number}"
        if missing := ", ".join(schema.unset(_parsed(path, text, where=where, remedy="nothing was written"))):
            raise ArtefactError(f"{where}: expected {missing}, got nothing; nothing was written")
        new.append(text)
    write_bytes(path, (path.read_bytes() if path.is_file() else b"") + _lines(new))


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of one kind anew, atomically; fields that came later than a row may be missing.

    Raises:
        ArtefactError: a row is not what its kind has to be; the file stays.
    """
    texts = [json.dumps(row, sort_keys=True) for row in rows]
    for number, text in enumerate(texts, start=1):
        _parsed(path, text, where=f"{path}: new row {number}", remedy="nothing was written")
    write_bytes(path, _lines(texts))


def read(path: Path) -> list[dict[str, Any]]:
    """All rows of a file, oldest first; none where there is no file.

    Raises:
        ArtefactError: a line is not what a row of this kind has to be.
    """
    return [row.model_dump(mode="json", exclude_unset=True) for row in _rows(path)]


def lacking(path: Path) -> dict[str, int]:
    """Fields that came later than rows of a file: how many rows are without each; errors as :func:`read`."""
    found: dict[str, int] = {}
    for row in _rows(path):
        for name in schema.unset(row):
            found[name] = found.get(name, 0) + 1
    return found


def unclean(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a row's commit, if it is to be published; None: nothing."""
    commit = row["environment"]["commit"]
    if commit and not commit.endswith("-dirty"):
        return None
    return f"environment.commit: expected that of a clean checkout, got {commit!r}; commit, and measure again"


def _rows(path: Path) -> Iterator[schema.Row]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    remedy = f"delete the line, or the file to measure again with `{KINDS[path.name].command}`"
    for number, line in enumerate(lines, start=1):
        yield _parsed(path, line, where=f"{path}:{number}", remedy=remedy)


def _parsed(path: Path, text: str, *, where: str, remedy: str) -> schema.Row:
    try:
        return KINDS[path.name].model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ArtefactError(f"{where}: {_sentence(first, error.error_count())}; {remedy}") from None


def _sentence(error: Mapping[str, Any], count: int) -> str:
    """Field, what was expected, what there is; of several errors the first."""
    field = ".".join(map(str, error["loc"])) or "the row"
    if error["type"] == "missing":
        said = "expected a value, got nothing"
    elif error["type"] == "extra_forbidden":
        said = "expected no such field"
    else:
        expected = error["msg"].removeprefix("Input should be ").removeprefix("Invalid ")
        said = f"expected {expected}, got {json.dumps(error['input'])[:80]}"
    return f"{field}: {said}" + (f" (and {count - 1} more)" if count > 1 else "")


def _lines(texts: Iterable[str]) -> bytes:
    return "".join(text + "\n" for text in texts).encode()
