"""Measured rows that are kept with the code, and what is made from them alone: tables in documents, and images.

A document holds a table between `<!-- rows: NAME -->` and `<!-- end of rows -->`. NAME is a data set (its artefacts),
`compare` (the summary of the comparison with other runtimes), `trained` (of that, trained networks
alone), or one of BLOCKS. All rows of a table are of one machine and of clean commits.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import ablation, scoring_tables
from bench.artefact_table import Line, collect, lines_of
from bench.artefact_table import render as table_of
from bench.pareto import draw_pareto
from bench.rows import (
    ABLATION,
    ACCURACY,
    ATTACKS,
    COMPARE,
    KINDS,
    LATENCY,
    LISTING,
    LOAD,
    RACE,
    SCORE,
    SERVING,
    SOAK,
    START,
    TRAINING,
    lacking,
    read,
    unclean,
    write,
)
from bench.runtimes.tables import summary_table
from bench.serving import soak_tables, start
from bench.serving.tables import markdown as serving_table
from bench.training.measure import markdown as training_table
from bench.training.race_results import draw_race
from bench.training.race_results import markdown as race_table
from zoo.base.errors import ArtefactError, unknown_name
from zoo.base.files import write_bytes
from zoo.base.progress import note
from zoo.base.tables import plain

__all__ = ["BLOCKS", "PARETO", "RACED", "digest_of", "filled", "groups", "publish", "render"]

PARETO = "pareto.png"
RACED = "race.png"

_BLOCK = re.compile(r"(<!-- rows: (\S+) -->\n).*?(<!-- end of rows -->)", re.DOTALL)

_Row = Mapping[str, Any]
_KEYS: dict[str, Callable[[_Row], Any]] = {
    ABLATION: lambda row: (row["recipe"], row["dataset"]),
    ACCURACY: lambda row: (row["artefact"], row["file"], row["split"]),
    LATENCY: lambda row: (row["artefact"], row["file"]),
    COMPARE: lambda row: (row["family"], row["batch"], row["threads"]),
    SERVING: lambda row: (row["artefact"], row["file"]),
    LOAD: lambda row: (row["model"], row["scenario"]),
    SCORE: lambda row: row["artefact"],
    LISTING: lambda row: row["artefact"],
    ATTACKS: lambda row: row["attack"],
    SOAK: lambda row: row["fault"],
    START: lambda row: (row["artefact"], row["known"]),
    RACE: lambda row: (row["data"], row["model"], row["image_size"], row["allocator"], row["contestant"]),
    TRAINING: lambda row: (row["part"], row["data"], row["model"], str(row["image_size"]), row["batch"]),
}
"""What a newer run replaces an older one of."""

BLOCKS: dict[str, tuple[str, Callable[[Sequence[Any]], str]]] = {
    "ablation": (ABLATION, ablation.markdown),
    "attacks": (ATTACKS, soak_tables.attacks),
    "compare": (COMPARE, lambda rows: _compared(rows, random=True)),
    "listing": (LISTING, scoring_tables.listing),
    "race": (RACE, race_table),
    "score": (SCORE, scoring_tables.speed),
    "serving": (SERVING, serving_table),
    "soak": (SOAK, soak_tables.faults),
    "start": (START, start.markdown),
    "training": (TRAINING, training_table),
    "trained": (COMPARE, lambda rows: _compared(rows, random=False)),
}
"""Name of a table -> the file of its rows, and what makes it."""


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
        ArtefactError: a row that is not what its kind has to be, or of a commit that is not clean; a table of several
            machines; a document that cannot be read or written.
        UsageError: a document asks for rows of an unknown name.
    """
    written = []
    for name, new in _measured(output).items():
        if rows := _merged(read(results / name), new, _KEYS[name]):
            write(results / name, rows)
            written.append(results / name)
        for field, count in lacking(results / name).items():
            note(f"{results / name}: {count} of {len(rows)} rows lack {field}; `{KINDS[name].command}` measures it")
    found = groups(results)
    if found:
        draw_pareto(found, results / PARETO, digest=digest_of(results))
        written.append(results / PARETO)
    if raced := _kept(results, RACE):
        draw_race(raced, results / RACED)
        written.append(results / RACED)
    for document in documents:
        write_bytes(document, filled(_read(document), results).encode())
    return [*written, *documents]


def _measured(output: Path) -> dict[str, list[_Row]]:
    """The rows to keep, by file."""
    lines = [line for line in collect(output) if line.accuracy and line.latency]
    new: dict[str, list[_Row]] = {
        ABLATION: [*ablation.gather(output, ablation.RECIPE)],
        ACCURACY: [line.accuracy for line in lines if line.accuracy],
        LATENCY: [line.latency for line in lines if line.latency],
    }
    for name, key in _KEYS.items():
        path = output / "bench" / name
        there = read(path)
        new.setdefault(name, _latest(there, key))
        for row in new[name]:
            if problem := unclean(row):
                where = f"{path}:{there.index(dict(row)) + 1}" if row in there else output / row["name"]
                raise ArtefactError(f"{where}: {problem} with `{KINDS[name].command}`")
    return new


def _latest(rows: Sequence[_Row], key: Callable[[_Row], Any]) -> list[_Row]:
    """Of each key the rows of the last run."""
    last = {key(row): row["run"] for row in rows}
    return [row for row in rows if row["run"] == last[key(row)]]


def _merged(old: Sequence[_Row], new: Sequence[_Row], key: Callable[[_Row], Any]) -> list[_Row]:
    replaced = {key(row) for row in new}
    return [*(row for row in old if key(row) not in replaced), *new]


def _kept(results: Path, name: str) -> list[dict[str, Any]]:
    """The kept rows of a file.

    Raises:
        ArtefactError: one is of a commit that is not clean.
    """
    rows = read(results / name)
    for number, row in enumerate(rows, start=1):
        if problem := unclean(row):
            raise ArtefactError(f"{results / name}:{number}: {problem} with `{KINDS[name].command}`")
    return rows


def _of_one_machine(rows: Sequence[_Row], table: str) -> None:
    """Raises ArtefactError where the rows of a table are of several machines."""
    found = {json.dumps([row["environment"][name] for name in ("cpu", "flags", "cores")]) for row in rows}
    sizes = {row["environment"].get("memory_gb") for row in rows} - {None}
    if len(found) > 1 or len(sizes) > 1:
        told = ", ".join([*sorted(found), *(f"{size} GB" for size in sorted(sizes))])
        raise ArtefactError(f"rows of {table}: expected one machine, got {told}; measure all of them on one")


def groups(results: Path) -> dict[str, list[Line]]:
    """Data set -> its artefacts' lines, as the kept rows have them, in the order of their names."""
    accuracy, latency = _kept(results, ACCURACY), _kept(results, LATENCY)
    _of_one_machine(latency, LATENCY)
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
    """The table of this name, as text, from the kept rows alone; a sentence where none of its kind are kept yet.

    Raises:
        ArtefactError: its rows are of several machines, or one is of a commit that is not clean.
        UsageError: there are no such rows; lists close names.
    """
    if name not in BLOCKS:
        lines = groups(results)
        if name not in lines:
            raise unknown_name("rows", name, [*lines, *BLOCKS])
        return _fenced(plain(table_of(lines[name])))
    file, table = BLOCKS[name]
    rows = _kept(results, file)
    _of_one_machine(rows, name)
    return table(rows) if rows else f"No rows are kept yet; `{KINDS[file].command}` measures them."


def _compared(rows: Sequence[_Row], *, random: bool) -> str:
    # Times of other batches and threads are kept, too, and cannot stand beside these.
    beside = [row for row in rows if row["batch"] == 1 and row["threads"] == _cores(row)]
    return _fenced(summary_table(beside, random=random))


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
