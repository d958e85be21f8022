"""The result: a folder, here or on an object store, with one Parquet file per partition, `part-00000.parquet` and on.

A part is there completely or not at all, and says what it was made from: the artefact, the settings, and the digest of
its inputs. A run skips the parts that agree with it and refuses those that do not. `_SUCCESS` stands beside them when
all are there.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve.bulk.inputs import Partition
from serve.bulk.listing import is_url, located, open_file
from serve.bulk.scorer import SCHEMA
from zoo.base.errors import ArtefactError, PocketzooError, UsageError
from zoo.base.files import write_atomically

__all__ = ["METADATA", "Parts", "Summary"]

METADATA = b"pocketzoo.score"
"""Key of a part's metadata: what was scored, with what, as JSON."""

_NAME = re.compile(r"part-(\d{5,})\.parquet")
_SUCCESS = "_SUCCESS"
_GROUP = 1 << 14
"""Rows of a row group."""
_EXAMPLES = 3
_REPEATED = ["label", "labels.list.element"]
"""Columns with few different values."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a part holds."""

    rows: int
    errors: int
    """Rows without an answer."""
    examples: tuple[str, ...]
    """The first of them: path and reason."""
    passed: dict[str, int] = field(default_factory=dict)
    """Members of a tar shard that are no images, by reason."""
    fresh: bool = True
    """Made by this run."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one result. Plain values: it travels to other processes and machines."""

    out: str
    """Folder or URL."""
    decides: dict[str, Any]
    """All that decides about the rows besides the inputs. JSON values."""
    about: dict[str, Any]
    """What a part says besides. JSON values."""

    @contextmanager
    def opened(self, *, force: bool) -> Iterator[None]:
        """Make the folder and keep it, where it is on this machine, for this process.

        Args:
            force: remove the parts that are there.

        Raises:
            UsageError: it cannot be made or written, holds other files, or another process is writing it.
        """
        system, folder = located(self.out)
        with ExitStack() as stack:
            try:
                if not is_url(self.out):
                    Path(folder).mkdir(exist_ok=True)
                    stack.enter_context(_locked(folder))
                # An object store may know only when it is asked to write.
                system.pipe_file(f"{folder}/.try", b"")
                system.rm_file(f"{folder}/.try")
                names = self._names()
            except PocketzooError:
                raise
            # Every file system of fsspec has errors of its own.
            except Exception as error:
                raise UsageError(
                    f"--out {self.out}: expected a folder that can be written ({type(error).__name__}: {error}); "
                    "name another one"
                ) from error
            if others := [name for name in names if name != _SUCCESS and not _NAME.fullmatch(name)]:
                raise UsageError(
                    f"--out {self.out}: expected a new folder or an earlier run's, found {others[0]} in it; "
                    "name another one"
                )
            for name in names if force else ():
                system.rm_file(f"{folder}/{name}")
            yield

    def find(self, partition: Partition) -> Summary | None:
        """The part of a partition, if it is there.

        Raises:
            UsageError: it was made from other inputs, by another artefact, or with other settings.
        """
        place = self._place(partition.number)
        try:
            with open_file(place) as stream:
                metadata = pq.read_metadata(stream)
                found = json.loads((metadata.metadata or {})[METADATA])
        except FileNotFoundError:
            return None
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise UsageError(f"{place}: no part of this command ({error}); remove it, or name another --out") from error
        for key, now in (self.decides | {"inputs_digest": partition.digest}).items():
            if (there := found.get(key)) != now:
                raise UsageError(
                    f"{place}: expected {key.replace('_', ' ')} {_difference(now, there)}; --force scores everything "
                    "again, or name another --out"
                )
        return Summary(
            rows=metadata.num_rows,
            errors=found["errors"],
            examples=tuple(found["examples"]),
            passed=found["passed_over"],
            fresh=False,
        )

    def write(self, partition: Partition, batches: Iterable[pa.RecordBatch]) -> Summary:
        """Write the rows of a partition, as its part; a row group is in memory at a time.

        Raises:
            ArtefactError: the disk is full, or the object store does not take it.
        """
        place = self._place(partition.number)
        found: list[Summary] = []

        def fill(path: Path) -> None:
            with pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=_REPEATED) as writer:
                rows = errors = 0
                examples: list[str] = []
                for table in _row_groups(batches):
                    bad = table.select(["path", "error"]).filter(table["error"].is_valid())
                    rows, errors = rows + len(table), errors + len(bad)
                    wanted = bad.slice(0, _EXAMPLES - len(examples)).to_pylist()
                    examples += [f"{row['path']}: {row['error']}" for row in wanted]
                    writer.write_table(table)
                said = {"errors": errors, "examples": examples, "passed_over": dict(partition.passed)}
                known = self.about | self.decides | said | {"inputs_digest": partition.digest}
                writer.add_key_value_metadata({METADATA: json.dumps(known, sort_keys=True)})
            found.append(Summary(rows=rows, errors=errors, examples=tuple(examples), passed=dict(partition.passed)))

        _put(place, fill)
        return found[0]

    def finish(self, count: int, said: dict[str, Any]) -> None:
        """Say that all parts are there: numbers below `count`, and no others.

        Raises:
            UsageError: there are others, of a source that had more.
        """
        if more := [name for name in self._names() if (match := _NAME.fullmatch(name)) and int(match[1]) >= count]:
            raise UsageError(
                f"{self.out}: expected {count} parts, found {len(more)} more from {min(more)} on: the source had more "
                "inputs; --force scores everything again, or name another --out"
            )
        content = json.dumps(self.about | self.decides | said, indent=2, sort_keys=True) + "\n"

        def fill(path: Path) -> None:
            path.write_text(content, encoding="utf-8")

        _put(f"{self.out.rstrip('/')}/{_SUCCESS}", fill)

    def _place(self, number: int) -> str:
        return f"{self.out.rstrip('/')}/part-{number:05d}.parquet"

    def _names(self) -> list[str]:
        system, folder = located(self.out)
        names = [
            str(name).rpartition("/")[2] for name in (system.ls(folder, detail=False) if system.exists(folder) else [])
        ]
        return sorted(name for name in names if not name.startswith("."))


def _put(place: str, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a file, and put it in its place when it is whole."""
    if not is_url(place):
        write_atomically(Path(place), fill)
        return
    system, path = located(place)
    with tempfile.TemporaryDirectory(prefix="pocketzoo-") as folder:
        temporary = Path(folder) / "part"
        fill(temporary)
        try:
            system.put_file(str(temporary), path)
        # Every file system of fsspec has errors of its own.
        except Exception as error:
            raise ArtefactError(
                f"{place}: cannot be written ({type(error).__name__}: {error}); the same command continues where it "
                "stopped"
            ) from error


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UsageError(f"--out {folder}: another process is writing it; wait for it, or name another one") from error
    finally:
        os.close(descriptor)
        with suppress(OSError):  # unless it is empty
            Path(folder).rmdir()


def _difference(now: object, there: object) -> str:
    if isinstance(now, dict) and isinstance(there, dict):
        changed = [key for key in now if there.get(key) != now[key]]
        now, there = ({key: values.get(key) for key in changed} for values in (now, there))
    return f"{now}, found {there}"


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in tables of _GROUP rows or, at the end, fewer; at least one table."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += len(batch)
        if count >= _GROUP:
            yield pa.Table.from_batches(waiting, SCHEMA).combine_chunks()
            waiting, count = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting, SCHEMA).combine_chunks()
