"""What is white in a data set of deep images: measured where it can be, asked for where it cannot."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from tests.zoo.factories import encode, picture
from zoo.artefact.samples import SIXTEEN, Depth
from zoo.base.errors import DataError
from zoo.base.files import output_root
from zoo.data.catalogue import open_dataset
from zoo.data.dataset import Sample
from zoo.data.decoded import DecodedImages
from zoo.data.depth import measured_range
from zoo.data.folders.folder import open_folder
from zoo.data.folders.reading import Reading
from zoo.data.folders.unlabelled import open_images
from zoo.data.image_set import named
from zoo.training.recipe import Run
from zoo.training.stage import starting_point, train
from zoo.training.workspace import read_notes


def _deep(*largest: float, kind: str = SIXTEEN) -> list[Sample]:
    return [Sample(name="", label=0, digest="", source=b"", depth=Depth(kind, value)) for value in largest]


@pytest.mark.parametrize(
    ("largest", "white"),
    [(1, 1), (2, 3), (255, 255), (256, 511), (1000, 1023), (3071, 4095), (4095, 4095), (4096, 8191), (16383, 16383)],
)
def test_the_fewest_bits_that_hold_all_training_images(largest, white):
    found, sentence = measured_range([*_deep(largest, largest / 2), *_deep(1.0, kind="floating-point images")])
    assert found == white
    assert sentence.startswith(f"2 of 3 training images have 16 bits a sample and none above {largest}, so {white} is")


@pytest.mark.parametrize(
    "samples", [[], _deep(), _deep(0, 0), _deep(4095, 32768), _deep(65535), _deep(9, kind="floating-point images")]
)
def test_nothing_is_said_where_nothing_is_to_be_said(samples):
    assert measured_range([*samples, Sample(name="", label=0, digest="", source=b"")]) == (None, "")


def _write(root: Path, suffix: str, make, per_class: int = 7) -> Path:
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for number in range(per_class):
            kind = {".png": "PNG", ".tif": "TIFF"}[suffix]
            (root / label / f"{number}{suffix}").write_bytes(encode(make(random.uniform(size=(6, 9))), kind))
    return root


def test_12_bits_in_16_are_said_and_decide(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))
    root = _write(tmp_path / "night", ".png", lambda values: (values * 4095).astype(np.uint16))
    run = Run(data=str(root), model="resnet10t", size=32, arguments={"channels": [8, 8, 8, 8]})
    dataset = open_dataset(str(root))
    _, card = starting_point(run, dataset, None)
    assert card.use.input.range == 4095
    told = capsys.readouterr().err
    count = len(dataset.splits["train"])
    assert (
        told.count(f"night: {count} of {count} training images have 16 bits a sample") == 1
        and "so 4095 is white" in told
    )
    assert DecodedImages(dataset.splits["train"], card.use.input)[0][0].max() > 200
    _, own = starting_point(dataclasses.replace(run, reading=Reading(range=65535.0)), dataset, None)
    assert own.use.input.range == 65535 and not capsys.readouterr().err
    assert DecodedImages(dataset.splits["train"], own.use.input)[0][0].max() < 17


def test_what_was_verified_before_samples_were_looked_at_is_verified_again(tmp_path, monkeypatch):
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))
    root = _write(tmp_path / "night", ".png", lambda values: (values * 1000).astype(np.uint16))
    open_folder(root)
    (memory,) = (output_root() / ".index").glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(memory)) as table, table:
        known = table.execute("SELECT * FROM good ORDER BY name").fetchall()
        assert {row[4] for row in known} == {SIXTEEN} and 900 < max(row[5] for row in known) <= 1000
        table.execute("DROP TABLE good")
        table.execute("CREATE TABLE good (name TEXT PRIMARY KEY, size INTEGER, changed INTEGER, digest BLOB)")
        table.executemany("INSERT INTO good VALUES (?, ?, ?, ?)", [row[:4] for row in known])
    for _ in range(2):
        assert measured_range(open_folder(root).splits["train"])[0] == 1023
    with contextlib.closing(sqlite3.connect(memory)) as table:
        assert table.execute("SELECT * FROM good ORDER BY name").fetchall() == known


@pytest.mark.parametrize(("kind", "scale", "white"), [("float32", 1.0, 1.0), ("int32", 70_000, 131_071.0)])
def test_images_without_a_range_want_one(tmp_path, monkeypatch, kind, scale, white):
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))
    root = _write(tmp_path / "depths", ".tif", lambda values: (values * scale).astype(kind))
    with pytest.raises(
        DataError, match=r"14 of 14 .*no defined .* \(--set reading\.range=VALUE in training\).*largest"
    ):
        open_folder(root)
    run = Run(name="deep", data=str(root), model="resnet10t", size=32, reading=Reading(range=white))
    dataset = open_dataset(str(root), reading=run.reading)
    assert sum(map(len, dataset.splits.values())) == 14
    _, card = starting_point(run, dataset, None)
    images = DecodedImages(dataset.splits["train"], card.use.input)
    assert (card.use.input.range, images[0][0].max() > 100) == (white, True)
    assert len(named([root], white=white).samples) == len(open_images(root, white=white)) == 14
    with pytest.raises(DataError, match="no defined brightness range"):
        named([root])


def test_a_few_images_without_a_range_are_skipped_and_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))
    root = _write(tmp_path / "photos", ".png", lambda values: (values * 255).astype(np.uint8), per_class=12)
    (root / "cat" / "odd.tif").write_bytes(encode(np.zeros((4, 4), np.float32), "TIFF"))
    dataset = open_folder(root)
    (odd,) = dataset.unused
    assert odd.file == "cat/odd.tif" and odd.reason.startswith("floating-point images have no defined")
    assert "1 not used: floating-point images have no defined brightness range: say which" in capsys.readouterr().err
    assert measured_range(dataset.splits["train"]) == (None, "")


def test_the_range_is_remembered_beside_the_artefact(tmp_path, monkeypatch):
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))
    root = _write(tmp_path / "depths", ".tif", lambda values: values.astype(np.float32))
    run = Run(name="deep", data=str(root), model="lenet", reading=Reading(range=1.0), test=False)
    train(run, output_root())
    assert read_notes(output_root() / "deep").data.reading.range == 1
    assert sum(map(len, read_notes(output_root() / "deep").data.open().splits.values())) == 14


def test_huge_jpeg_files_are_readable(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.artefact.decode.MAX_PIXELS", 10_000)
    (tmp_path / "huge.jpg").write_bytes(encode(picture(0, 160, 320), "JPEG"))
    assert len(named([tmp_path / "huge.jpg"]).samples) == 1
    (tmp_path / "huge.png").write_bytes(encode(picture(0, 160, 320)))
    with pytest.raises(DataError, match=r"320 x 160 pixels, at most 10000 are accepted; save it smaller"):
        named([tmp_path / "huge.png"])
