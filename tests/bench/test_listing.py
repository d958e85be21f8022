"""A huge folder is simulated: the run ends when it is listed, and the row is complete."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import bench.listing
from bench.listing import ListingConfig, Run, measure_listing, run
from bench.rows import LISTING, append, read
from bench.scoring_tables import listing as table
from tests.zoo.factories import encode, picture, write_artefact
from zoo.base.errors import DataError, UsageError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("listing")
    write_artefact(folder / "model.onnx")
    (folder / "photos").mkdir()
    for seed in range(3):
        (folder / "photos" / f"{seed}.png").write_bytes(encode(picture(seed)))
    return folder


def _config(place: Path, names: int) -> ListingConfig:
    return ListingConfig(artefact=place / "model.onnx", source=str(place / "photos"), names=names, workers=1)


def test_the_row(place, tmp_path):
    row = measure_listing(_config(place, 20_000))
    append(tmp_path / LISTING, [row])
    (kept,) = read(tmp_path / LISTING)
    assert kept == row
    assert 0 < row["first_seconds"] <= row["listed_seconds"]
    assert 0 < row["n"] < row["names"] == 20_000
    assert len(row["peak_mb"]) == 11 and row["peak_mb"] == sorted(row["peak_mb"])
    assert row["source"] == "photos"
    assert "| tiny/model.onnx | 20,000 |" in table([row])


def test_few_names_are_scored_before_they_are_listed(place, monkeypatch):
    task = Run(
        file=str(place / "model.onnx"),
        engine="onnxruntime",
        source=str(place / "photos"),
        names=200,
        workers=1,
        threads=1,
        batch=4,
    )
    found = {}

    def score(config, *, watch):
        with os.scandir(config.source) as entries:
            found["names"] = [entry.name for entry in entries]
        found["out"] = list(os.scandir(Path(config.out).parent))
        watch(128, 150, False)

    monkeypatch.setattr(bench.listing, "score", score)
    monkeypatch.setattr(bench.listing, "since_start", lambda: 1.0)
    with pytest.raises(DataError, match="--names: 200 names were scored before all were listed; name more"):
        run(task)
    assert len(found["names"]) == 200 and set(found["names"]) == {"0.png", "1.png", "2.png"}
    assert found["out"] == []


def test_what_cannot_be_simulated(place):
    with pytest.raises(UsageError, match="--names: expected at least 1, got 0"):
        _config(place, 0)
    with pytest.raises(UsageError, match=r"--names: expected a folder whose images come again and again, got .*onnx"):
        ListingConfig(artefact=place / "model.onnx", source=str(place / "model.onnx"), names=5)
