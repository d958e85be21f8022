"""Images to rows in one process."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest

from serve.bulk.scorer import SCHEMA, Chunk, Item, Job, Scorer
from tests.zoo.factories import encode, picture, write_artefact
from zoo.artefact.decode import FORMATS
from zoo.artefact.predictor import Predictor
from zoo.base.errors import ArtefactError, DataError
from zoo.base.files import sha256_file


def _job(path: Path, **changes: object) -> Job:
    values = {
        "digest": sha256_file(path),
        "threads": 1,
        "engine": "onnxruntime",
        "batch": 2,
        "top": 2,
        "max_pixels": 10_000,
    }
    return Job(**{"path": str(path), "max_image_bytes": 50_000, "formats": FORMATS} | values | changes)


def _chunk(images: list[bytes | None], files: list[str | None] | None = None, **changes: object) -> Chunk:
    files = files or [None] * len(images)
    items = tuple(Item(f"p{place}", *each) for place, each in enumerate(zip(images, files, strict=True)))
    return Chunk(**{"first": 0, "items": items} | changes)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worker") / "model.onnx"
    write_artefact(path)
    return path


def test_rows_are_what_the_predictor_says(artefact):
    images = [encode(picture(seed)) for seed in range(5)]
    rows = Scorer(_job(artefact))(_chunk(images, first=40)).to_pylist()
    answers = Predictor(artefact, threads=1).predict(images, top=2)
    assert [row["row"] for row in rows] == [40, 41, 42, 43, 44]
    for row, answer, data in zip(rows, answers, images, strict=True):
        assert row["labels"] == list(answer.labels) and row["label"] == answer.labels[0]
        assert np.allclose(row["probabilities"], answer.probabilities, rtol=1e-6)
        assert row["probability"] == row["probabilities"][0]
        assert (row["bytes"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert row["error"] is None


def test_reading_ahead_changes_no_row(artefact, tmp_path, monkeypatch):
    for seed in range(5):
        (tmp_path / f"{seed}.png").write_bytes(encode(picture(seed)))
    chunk = _chunk([None] * 6, [str(tmp_path / f"{seed}.png") for seed in (0, 1, 9, 2, 3, 4)])
    scorer = Scorer(_job(artefact, batch=4, top=5))
    whole = scorer(chunk)
    monkeypatch.setattr("serve.bulk.scorer._READ_AHEAD", 1)
    assert scorer(chunk).equals(whole)
    assert [len(row["labels"] or ()) for row in whole.to_pylist()] == [3, 3, 0, 3, 3, 3]  # there are no more labels


def test_what_cannot_be_read_is_a_sentence_in_its_row(artefact, tmp_path):
    good = encode(picture(1))
    (tmp_path / "good.png").write_bytes(good)
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    files = [None, None, None, None, *(f"{name}.png" for name in ("gone", "good", "folder", "pipe"))]
    images = [b"", good[:60], encode(picture(0, 101, 100)), None, None, None, None, None]
    chunk = _chunk([*images, b"x" * 50_001, good], [*files, None, None], base=str(tmp_path))
    rows = Scorer(_job(artefact, batch=4))(chunk).to_pylist()
    assert [row["label"] is None for row in rows] == [row["error"] is not None for row in rows]
    assert [place for place, row in enumerate(rows) if row["error"] is None] == [5, 9]
    assert rows[5]["label"] == rows[9]["label"]
    said = [
        "empty",
        "cannot decode",
        "pixels",
        "no image",
        "No such file",
        "not a regular",
        "not a regular",
        "more than 50000 bytes",
    ]
    errors = [row["error"] for row in rows if row["error"]]
    assert all(part in error for part, error in zip(said, errors, strict=True)), errors
    assert rows[1]["sha256"] and rows[8]["sha256"] is None


def test_a_bad_picture_changes_no_row_of_another_batch(artefact):
    images = [encode(picture(seed)) for seed in range(6)]
    scorer = Scorer(_job(artefact))
    whole = scorer(_chunk(images)).to_pylist()
    images[0] = b"nonsense"
    assert scorer(_chunk(images)).to_pylist()[2:] == whole[2:]


def test_without_any_answer(artefact):
    batch = Scorer(_job(artefact))(_chunk([None, b"x"]))
    assert batch.schema == SCHEMA
    assert batch["label"].null_count == batch["probabilities"].null_count == 2


def test_without_inputs(artefact):
    assert len(Scorer(_job(artefact))(_chunk([]))) == 0


def test_what_the_reader_says_is_in_the_row(artefact):
    (row,) = Scorer(_job(artefact))(Chunk(first=0, items=(Item("s.tar", error="is cut off"),))).to_pylist()
    assert (row["path"], row["error"], row["label"]) == ("s.tar", "is cut off", None)


def test_urls(artefact):
    system = fsspec.filesystem("memory")
    good = encode(picture(1))
    system.pipe({"/photos/good.png": good, "/photos/empty.png": b"", "/photos/large.png": b"x" * 50_001})
    names = ["memory://photos/good.png", "gone.png", "empty.png", "large.png", "nothing://x", "good.png"]
    try:
        rows = Scorer(_job(artefact, batch=4))(_chunk([None] * 6, names, base="memory://photos")).to_pylist()
    finally:
        system.rm("/photos", recursive=True)
    assert [row["error"] is None for row in rows] == [True, False, False, False, False, True]
    assert rows[0]["sha256"] == rows[5]["sha256"] == hashlib.sha256(good).hexdigest()
    said = ["cannot be read", "empty", "more than 50000 bytes", "Protocol not known"]
    assert all(part in row["error"] for part, row in zip(said, rows[1:5], strict=True)), rows


def test_a_store_that_does_not_answer_ends_the_run(artefact, monkeypatch):
    def fail(*given: object, **options: object) -> list[Exception]:
        return [TimeoutError("no answer")]

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_ranges", fail)
    with pytest.raises(
        DataError, match=r"memory does not answer \(TimeoutError: no answer\); the same command continues"
    ):
        Scorer(_job(artefact))(_chunk([None], ["memory://x"]))


def test_another_file_than_the_run_began_with(artefact):
    with pytest.raises(ArtefactError, match="changed while it was in use"):
        Scorer(_job(artefact, digest="0" * 64))
