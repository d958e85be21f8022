"""Scoring one chunk of images: what runs in every worker of every executor, free of torch.

A chunk is a run of neighbouring inputs of a partition, scored in batches of as many neighbours as an inference takes.
Kernels may round differently at another batch size, so chunks and batches depend on the source and the settings alone:
never on the executor, on the number of workers, or on where an interrupted run stopped.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serve.bulk.listing import is_url, located
from zoo.artefact.predictor import Predictor, best
from zoo.artefact.preprocess import decode_for, normalise, to_input_size
from zoo.base.errors import ArtefactError, DataError, ImageError, ImageSizeError

__all__ = ["SCHEMA", "Chunk", "Item", "Job", "Scorer"]

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("probability", pa.float32()),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("probabilities", pa.list_(pa.float32())),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("error", pa.string()),
    ]
)
"""The columns of the result: either `label` to `probabilities`, or `error`; `bytes` and `sha256` of the image's file
where it was read. `row` counts from zero through the source, in tar shards through the shard."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to know. Plain values: it travels to other processes and machines."""

    path: str
    """The ONNX file."""
    digest: str
    """SHA-256 that it has to have."""
    threads: int
    """Of one inference."""
    engine: str
    """What computes: one name of zoo.artefact.engines.runtimes, so that all workers compute alike."""
    batch: int
    """Rows of one inference; unreadable ones leave it smaller."""
    top: int
    """Labels per image."""
    max_pixels: int
    max_image_bytes: int
    formats: tuple[str, ...]
    """Limits of an image, as serving has them (serve.settings)."""


class Item(NamedTuple):
    """One input: an encoded image, where one is, or why there is none."""

    name: str
    """Says which image it is."""
    image: bytes | None = None
    file: str | None = None
    """Path (os.fsdecode's where it is not Unicode) or URL."""
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Neighbouring inputs of a partition."""

    first: int
    """Row of the first one."""
    items: tuple[Item, ...] = field(repr=False)
    base: str = ""
    """Folder or URL of relative paths that the working directory does not have."""


_READ_AHEAD = 1 << 20
"""System calls in turn with decoding cost small images a twentieth of their time."""


@dataclass(kw_only=True)
class _Read:
    """What was read of a chunk's images, or why not: a value per image."""

    sizes: list[int | None]
    """Bytes."""
    digests: list[str | None]
    """SHA-256."""
    errors: list[str | None]


class Scorer:
    """One predictor and its limits; called with a chunk, it returns rows of SCHEMA."""

    def __init__(self, job: Job) -> None:
        """Load the artefact.

        Raises:
            PocketzooError: see zoo.artefact.predictor.Predictor.
            ArtefactError: the file is not the one that the run began with.
        """
        self.job = job
        self.predictor = Predictor(Path(job.path), threads=job.threads, engine=job.engine)
        if self.predictor.digest != job.digest:
            raise ArtefactError(f"{job.path}: changed while it was in use; run the command again with --force")
        self._labels = pa.array(self.predictor.card.use.labels, pa.string())
        # The first row that Arrow makes takes a fifth of a second (it looks for pandas), which belongs to loading.
        self(Chunk(first=0, items=(Item(""),)))

    def __call__(self, chunk: Chunk) -> pa.RecordBatch:
        """Score `N` images: a record batch of N rows, in their order."""
        count = len(chunk.items)
        read = _Read(sizes=[None] * count, digests=[None] * count, errors=[None] * count)
        found = []
        for first in range(0, count, self.job.batch):
            pixels = []
            for place, data in self._encoded(chunk, range(first, min(first + self.job.batch, count)), read):
                try:
                    pixels.append(self._pixels(data))
                except ImageError as error:
                    read.errors[place] = str(error)
            if pixels:
                # All at once: for images of 28 x 28 pixels NumPy's calls take longer than their work.
                inputs = normalise(np.stack(pixels), self.predictor.card.use.input)
                found.append(self.predictor.probabilities(inputs))
        return pa.record_batch(
            [
                pa.array(range(chunk.first, chunk.first + count), pa.int64()),
                pa.array([item.name for item in chunk.items], pa.string()),
                *self._answers(found, np.array([error is None for error in read.errors], dtype=bool)),
                pa.array(read.sizes, pa.int64()),
                pa.array(read.digests, pa.string()),
                pa.array(read.errors, pa.string()),
            ],
            schema=SCHEMA,
        )

    def _answers(self, found: list[npt.NDArray[np.float32]], valid: npt.NDArray[np.bool_]) -> tuple[pa.Array, ...]:
        """The columns `label` to `probabilities` of N rows; in Arrow's memory at once, no object per image.

        Args:
            found: probabilities [G, K] of the G valid rows, in pieces.
            valid: [N].
        """
        everything = np.concatenate(found) if found else np.empty((0, len(self._labels)), dtype=np.float32)
        order = best(everything, top=self.job.top)  # [G, T]
        values = everything[np.arange(len(order))[:, None], order]
        first = np.zeros(len(valid), dtype=np.int64)
        highest = np.zeros(len(valid), dtype=np.float32)
        first[valid], highest[valid] = order[:, 0], values[:, 0]
        offsets = np.zeros(len(valid) + 1, dtype=np.int32)
        np.cumsum(valid * order.shape[1], out=offsets[1:])
        without = pa.array(~valid)
        return (
            self._labels.take(pa.array(first, mask=~valid)),
            pa.array(highest, mask=~valid),
            pa.ListArray.from_arrays(offsets, self._labels.take(pa.array(order.ravel())), mask=without),
            pa.ListArray.from_arrays(offsets, pa.array(values.ravel()), mask=without),
        )

    def _encoded(self, chunk: Chunk, places: Iterable[int], read: _Read) -> Iterator[tuple[int, bytes]]:
        """The encoded images at these places of a chunk, up to _READ_AHEAD bytes of them at once."""
        files = [_place(chunk.items[place], chunk.base) for place in places]
        fetched = _fetch([file for file in files if file and is_url(file)], self.job.max_image_bytes)
        ahead: list[tuple[int, bytes]] = []
        held = 0
        for place, file in zip(places, files, strict=True):
            try:
                data = self._data(chunk.items[place], file, fetched)
            except (ImageError, OSError) as error:
                read.errors[place] = _sentence(error)
                continue
            read.sizes[place], read.digests[place] = len(data), hashlib.sha256(data).hexdigest()
            ahead.append((place, data))
            held += len(data)
            if held >= _READ_AHEAD:
                yield from ahead
                ahead, held = [], 0
        yield from ahead

    def _data(self, item: Item, file: str | None, fetched: dict[str, bytes | OSError]) -> bytes:
        if item.error:
            raise ImageError(item.error)
        if item.image is not None:
            data: bytes | OSError = item.image
        elif file is None:
            raise ImageError("the row has no image")
        else:
            data = fetched[file] if file in fetched else _read(file, self.job.max_image_bytes)
        if isinstance(data, OSError):
            raise data
        _check_size(len(data), self.job.max_image_bytes)
        return data

    def _pixels(self, data: bytes) -> npt.NDArray[np.uint8]:
        spec, job = self.predictor.card.use.input, self.job
        image = decode_for(data, spec, max_pixels=job.max_pixels, formats=job.formats)
        return to_input_size(image, spec, max_pixels=job.max_pixels)


def _place(item: Item, base: str) -> str | None:
    file = item.file
    if file is None or not base or is_url(file) or os.path.exists(file):  # noqa: PTH110 - paths need not be Unicode
        return file
    return f"{base}/{file}"


def _fetch(urls: list[str], most: int) -> dict[str, bytes | OSError]:
    """The first `most` + 1 bytes of what stands at each URL, read at the same time, or why one of them has none."""
    found: dict[str, bytes | OSError] = {}
    for scheme, group in itertools.groupby(sorted(set(urls)), key=lambda url: url.partition("://")[0]):
        named = list(group)
        try:
            system = located(named[0])[0]
        except DataError as error:
            found |= dict.fromkeys(named, OSError(str(error)))
            continue
        paths = [system._strip_protocol(url) for url in named]
        answers = system.cat_ranges(paths, [0] * len(paths), [most + 1] * len(paths), on_error="return")
        for url, answer in zip(named, answers, strict=True):
            if isinstance(answer, OSError) and answer.errno == errno.EINVAL:
                answer = b""  # S3 has no range of an empty object
            # Anything else is no property of the image: the network, or credentials that ended.
            if isinstance(answer, Exception) and not isinstance(answer, (FileNotFoundError, PermissionError)):
                raise DataError(
                    f"{url}: {scheme} does not answer ({type(answer).__name__}: {answer}); the same command continues "
                    "where it stopped"
                )
            found[url] = answer
    return found


def _read(file: str, most: int) -> bytes:
    # Opening a pipe would wait for somebody who writes into it. No file object: it takes twice as many system calls.
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise ImageError("not a regular file")
        _check_size(state.st_size, most)
        pieces, left = [], state.st_size
        while left > 0 and (piece := os.read(descriptor, left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ImageSizeError(f"the file has more than {most} bytes (POCKETZOO_MAX_IMAGE_BYTES)")


def _sentence(error: ImageError | OSError) -> str:
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)
