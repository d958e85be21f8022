"""Measured rows that are kept with the code, and what is made from them alone: the README's tables and an image.

A document holds a table between `<!-- rows: NAME -->` and `<!-- end of rows -->`. NAME is a data set (its artefacts),
`compare` (the summary of the comparison with other runtimes), `trained` (of that, trained networks
alone), `serving`, `start`, `soak`, `attacks` or `race`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.artefact_table import Line, collect, lines_of
from bench.artefact_table import render as table_of
from bench.pareto import draw_pareto
from bench.rows import ACCURACY, ATTACKS, COMPARE, LATENCY, LOAD, RACE, SCORE, SERVING, SOAK, START, read, write
from bench.runtimes.tables import summary_table
from bench.serving import soak_tables, start
from bench.serving.tables import markdown as serving_table
from bench.training.race_results import draw_race
from bench.training.race_results import markdown as race_table
from zoo.base.errors import ArtefactError, unknown_name
from zoo.base.files import write_bytes
from zoo.base.tables import plain

__all__ = ["PARETO", "RACED", "digest_of", "filled", "groups", "publish", "render"]

PARETO = "pareto.png"
RACED = "race.png"

_BLOCK = re.compile(r"(<!-- rows: (\S+) -->\n).*?(<!-- end of rows -->)", re.DOTALL)

_Row = Mapping[str, Any]
_KEYS: dict[str, Callable[[_Row], Any]] = {
    ACCURACY: lambda row: (row["artefact"], row["file"], row["split"]),
    LATENCY: lambda row: (row["artefact"], row["file"]),
    COMPARE: lambda row: (row["family"], row["batch"], row["threads"]),
    SERVING: lambda row: (row["artefact"], row["file"]),
    LOAD: lambda row: (row["model"], row["scenario"]),
    SCORE: lambda row: row["artefact"],
    ATTACKS: lambda row: row["attack"],
    SOAK: lambda row: row["fault"],
    START: lambda row: (row["artefact"], row["known"]),
    RACE: lambda row: (row["data"], row["model"], row["image_size"], row["allocator"], row["contestant"]),
}
"""What a newer run replaces an older one of."""


def publish(output: Path, results: Path, documents: Sequence[Path]) -> list[Path]:
    """Keep the latest rows under `output`, and make from the kept rows what shows them.

    A run's rows replace the kept ones of the same artefacts (families, models); other kept rows stay. Of accuracies
    and latencies it takes what `pocketzoo list` shows: of files that are there, byte for byte, and times of one run.

    Args:
        output: folder of artefacts.
        results: folder of the kept rows.
        documents: whose tables are made anew.

    Returns:
        The files that were written.

    Raises:
        ArtefactError: an incomplete row, or a document that cannot be read or written.
        UsageError: a document asks for rows of an unknown name.
    """
    written = []
    for name, new in _measured(output).items():
        if rows := _merged(read(results / name), new, _KEYS[name]):
            write(results / name, rows)
            written.append(results / name)
    found = groups(results)
    if found:
        draw_pareto(found, results / PARETO, digest=digest_of(results))
        written.append(results / PARETO)
    if raced := read(results / RACE):
        draw_race(raced, results / RACED)
        written.append(results / RACED)
    for document in documents:
        write_bytes(document, filled(_read(document), results).encode())
    return [*written, *documents]


def _measured(output: Path) -> dict[str, list[_Row]]:
    """The rows to keep, by file."""
    lines = [line for line in collect(output) if line.accuracy and line.latency]
    new: dict[str, list[_Row]] = {
        ACCURACY: [line.accuracy for line in lines if line.accuracy],
        LATENCY: [line.latency for line in lines if line.latency],
    }
    return new | {name: _latest(read(output / "bench" / name), key) for name, key in _KEYS.items() if name not in new}


def _latest(rows: Sequence[_Row], key: Callable[[_Row], Any]) -> list[_Row]:
    """Of each key the rows of the last run; rows without a run are runs of their own."""
    last = {key(row): row.get("run", index) for index, row in enumerate(rows)}
    return [row for index, row in enumerate(rows) if row.get("run", index) == last[key(row)]]


def _merged(old: Sequence[_Row], new: Sequence[_Row], key: Callable[[_Row], Any]) -> list[_Row]:
    replaced = {key(row) for row in new}
    return [*(row for row in old if key(row) not in replaced), *new]


def groups(results: Path) -> dict[str, list[Line]]:
    """Data set -> its artefacts' lines, as the kept rows have them, in the order of their names."""
    accuracy, latency = read(results / ACCURACY), read(results / LATENCY)
    found: dict[str, dict[str, _Row]] = {}
    for row in accuracy:
        if row["split"] == "test":
            found.setdefault(row["dataset"], {})[row["digest"]] = row
    threads = {row["digest"]: _cores(row) for row in latency}
    lines = {}
    for dataset, rows in sorted(found.items()):
        ordered = sorted(rows.values(), key=lambda row: (row["artefact"], row["precision"] == "int8"))
        cores = next((threads[row["digest"]] for row in ordered if row["digest"] in threads), 0)
        lines[dataset] = lines_of(ordered, accuracy, latency, threads=cores)
    return lines


def _cores(row: _Row) -> int:
    return int(row["environment"]["cores"])


def render(name: str, results: Path) -> str:
    """The table of this name, as text, from the kept rows alone.

    Raises:
        UsageError: there are no such rows; lists close names.
    """
    lines = groups(results)
    others = {"compare": COMPARE, "trained": COMPARE, "serving": SERVING, "start": START, "soak": SOAK}
    others |= {"attacks": ATTACKS, "race": RACE}
    measured = {key: rows for key, file in others.items() if (rows := read(results / file))}
    if name in lines:
        return _fenced(plain(table_of(lines[name])))
    if name not in measured:
        raise unknown_name("rows", name, [*lines, *measured])
    rows = measured[name]
    if others[name] == COMPARE:
        # Times of other batches and threads are kept, too, and cannot stand beside these.
        beside = [row for row in rows if row["batch"] == 1 and row["threads"] == _cores(row)]
        return _fenced(summary_table(beside, random=name == "compare"))
    tables = {SERVING: serving_table, START: start.markdown, SOAK: soak_tables.faults}
    tables |= {ATTACKS: soak_tables.attacks, RACE: race_table}
    return tables[others[name]](rows)


def _fenced(text: str) -> str:
    return f"```\n{text}\n```"


def filled(document: str, results: Path) -> str:
    """A document with its tables made anew; errors as :func:`render`."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{render(match[2], results)}\n{match[3]}"

    return _BLOCK.sub(block, document)


def digest_of(results: Path) -> str:
    """SHA-256 over the kept rows that the image shows."""
    rows = [read(results / name) for name in (ACCURACY, LATENCY)]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _read(document: Path) -> str:
    try:
        return document.read_text(encoding="utf-8")
    except OSError as error:
        raise ArtefactError(f"{document}: cannot be read: {error}; name another --document") from error
