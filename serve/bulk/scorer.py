"""Scoring one chunk of images: what runs in every worker of every executor, free of torch.

A chunk is a run of neighbouring rows of the source, scored in batches of as many neighbours as an inference takes.
Kernels may round differently at another batch size, so chunks and batches depend on the source and the settings alone:
never on the executor, on the number of workers, or on where an interrupted run stopped.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zoo.artefact.predictor import Prediction, Predictor
from zoo.artefact.preprocess import decode_for, normalise, to_input_size
from zoo.base.errors import ArtefactError, ImageError, ImageSizeError

__all__ = ["SCHEMA", "Chunk", "Job", "Scorer", "shown"]

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
where it was read."""


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


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Neighbouring rows of the source: `N` images, in memory or on disk."""

    number: int
    """Chunks count from zero."""
    first: int
    """Row of the first image; rows count from zero through the whole source."""
    names: tuple[str, ...]
    """N texts that say which image it is."""
    images: tuple[bytes | None, ...]
    """N encoded images; None: it is on disk."""
    files: tuple[bytes | None, ...]
    """N paths as the file system has them; None: it is in memory, or (if that is None too) the row is empty."""
    base: bytes = b""
    """Folder of relative paths that the working directory does not have."""


def shown(path: bytes) -> str:
    """A path as valid Unicode; bytes that are none are escaped."""
    return path.decode("utf-8", "backslashreplace")


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
        # The first row that Arrow makes takes a fifth of a second (it looks for pandas), which belongs to loading.
        self(Chunk(number=0, first=0, names=("",), images=(None,), files=(None,)))

    def __call__(self, chunk: Chunk) -> pa.RecordBatch:
        """Score `N` images: a record batch of N rows, in their order."""
        count = len(chunk.names)
        answers: list[Prediction | None] = []
        sizes: list[int | None] = [None] * count
        digests: list[str | None] = [None] * count
        errors: list[str | None] = [None] * count
        for first in range(0, count, self.job.batch):
            places = range(first, min(first + self.job.batch, count))
            inputs = np.empty((len(places), *self.predictor.card.use.input.shape), dtype=np.float32)
            good = 0
            for place in places:
                try:
                    data = self._data(chunk, place)
                    sizes[place], digests[place] = len(data), hashlib.sha256(data).hexdigest()
                    self._prepare(data, inputs[good])
                    good += 1
                except (ImageError, OSError) as error:
                    errors[place] = _sentence(error)
            found = iter(self._answers(inputs[:good]))
            answers += [None if errors[place] else next(found) for place in places]
        return pa.record_batch(
            [
                pa.array(range(chunk.first, chunk.first + count), pa.int64()),
                pa.array(chunk.names, pa.string()),
                pa.array([answer and answer.labels[0] for answer in answers], pa.string()),
                pa.array([answer and answer.probabilities[0] for answer in answers], pa.float32()),
                pa.array([answer and answer.labels for answer in answers], pa.list_(pa.string())),
                pa.array([answer and answer.probabilities for answer in answers], pa.list_(pa.float32())),
                pa.array(sizes, pa.int64()),
                pa.array(digests, pa.string()),
                pa.array(errors, pa.string()),
            ],
            schema=SCHEMA,
        )

    def _answers(self, inputs: npt.NDArray[np.float32]) -> list[Prediction]:
        if not len(inputs):
            return []
        return self.predictor.answers(self.predictor.probabilities(inputs), top=self.job.top)

    def _data(self, chunk: Chunk, place: int) -> bytes:
        data, file = chunk.images[place], chunk.files[place]
        if data is None:
            if file is None:
                raise ImageError("the row has no image")
            return _read(file, chunk.base, self.job.max_image_bytes)
        _check_size(len(data), self.job.max_image_bytes)
        return data

    def _prepare(self, data: bytes, out: npt.NDArray[np.float32]) -> None:
        spec, job = self.predictor.card.use.input, self.job
        image = decode_for(data, spec, max_pixels=job.max_pixels, formats=job.formats)
        normalise(to_input_size(image, spec, max_pixels=job.max_pixels), spec, out=out)


def _read(file: bytes, base: bytes, most: int) -> bytes:
    if base and not os.path.exists(file):  # noqa: PTH110 - paths need not be valid Unicode
        file = os.path.join(base, file)  # noqa: PTH118
    state = os.stat(file)  # noqa: PTH116
    # Opening a pipe would wait for somebody who writes into it.
    if not stat.S_ISREG(state.st_mode):
        raise ImageError("not a regular file")
    _check_size(state.st_size, most)
    with open(file, "rb") as stream:  # noqa: PTH123
        return stream.read()


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ImageSizeError(f"the file has {size} bytes, at most {most} are accepted (POCKETZOO_MAX_IMAGE_BYTES)")


def _sentence(error: ImageError | OSError) -> str:
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)
