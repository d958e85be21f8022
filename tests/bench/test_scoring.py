"""The comparison of bulk scoring with loops: every way is taken, and the row is complete."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

import bench.scoring
from bench.rows import SCORE, append, read
from bench.scoring import REFERENCES, SpeedConfig, Turn, measure_speed, take_turn
from bench.scoring_tables import speed
from tests.zoo.factories import encode, picture, write_artefact
from zoo.base.errors import ArtefactError, DataError, UsageError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speed")
    write_artefact(folder / "model.onnx")
    (folder / "photos").mkdir()
    for seed in range(6):
        (folder / "photos" / f"{seed}.png").write_bytes(encode(picture(seed)))
    return folder


def _turn(place: Path, way: str, *, workers: int = 1) -> Turn:
    return Turn(
        way=way,
        file=str(place / "model.onnx"),
        engine="onnxruntime",
        source=str(place / "photos"),
        workers=workers,
        threads=1,
        batch=4,
    )


@pytest.mark.parametrize("way", ["score", *REFERENCES])
def test_every_way_is_timed(place, way):
    found = take_turn(_turn(place, way))
    assert found["images_per_s"] > 0
    assert ("peak_mb" in found) == (way == "score")


def test_two_threads_share_the_pictures(place):
    assert take_turn(_turn(place, "threads", workers=2))["images_per_s"] > 0


def test_the_row(place, monkeypatch, tmp_path):
    rates = {
        "score": (90.0, 60.0, 80.0),
        "session threads": (1, 1, 1),
        "threads": (100, 50, 2),
        "processes": (3, 75, 80),
    }

    def alternate(commands, rounds):
        for number in range(rounds):
            for way, (_, module, turn) in commands.items():
                assert module == "bench.scoring" and json.loads(turn)["way"] == way
                yield way, number, {"images_per_s": rates[way][number], "peak_mb": 1.0, "worker_peak_mb": 2.0}

    monkeypatch.setattr(bench.scoring, "alternate", alternate)
    row = measure_speed(SpeedConfig(artefact=place / "model.onnx", source=str(place / "photos"), rounds=3, workers=2))
    append(tmp_path / SCORE, [row])
    assert read(tmp_path / SCORE) == [json.loads(json.dumps(row))]
    assert row["round_images_per_s"] == {way: list(found) for way, found in rates.items()}
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == (0.9, 0.8, 1.0)
    assert row["references"] == {"session threads": 1, "threads": 50, "processes": 75}
    assert (row["n"], row["images_per_s"], row["engine"], row["source"]) == (6, 80, "onnxruntime", "photos")
    table = speed(read(tmp_path / SCORE))
    assert "| images/s | processes | session threads | threads | % of fastest (95 % CI) |" in table
    assert "| tiny/model.onnx | photos | 6 | 2 | 80 | 75 | 1 | 50 | 90.0 (80.0-100.0) | 1 | 2 |" in table


def killed(*given):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("step", ["_load", "_share"])
def test_a_process_that_is_killed_is_told_at_once(place, monkeypatch, step):
    monkeypatch.setattr(bench.scoring, step, killed)
    with pytest.raises(ArtefactError, match=r"a process of the reference ended: killed.*fewer --workers"):
        take_turn(_turn(place, "processes", workers=2))


def test_a_picture_that_cannot_be_read(place, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    turn = replace(_turn(place, "threads", workers=1), source=str(tmp_path))
    with pytest.raises(DataError, match=r"bad\.png.* remove it to measure speed"):
        take_turn(turn)
    with pytest.raises(UsageError, match="--rounds: expected at least 1, got 0"):
        SpeedConfig(artefact=place, source="x", rounds=0)
