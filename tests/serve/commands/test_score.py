"""`pocketzoo score` and `pocketzoo bench score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import bench.scoring
from bench.rows import SCORE, read
from tests.conftest import run_cli
from tests.zoo.factories import encode, picture, write_artefact


def _write(folder: Path) -> Path:
    write_artefact(folder / "tiny" / "model.onnx")
    (folder / "photos").mkdir()
    (folder / "photos" / "1.png").write_bytes(encode(picture(1)))
    (folder / "photos" / "2.png").write_bytes(b"nonsense")
    (folder / "photos" / ".3.png").write_bytes(b"nonsense")
    return folder / "tiny"


def test_score_tells_what_it_did(tmp_path):
    artefact, out = _write(tmp_path), tmp_path / "r"
    result = run_cli("score", artefact, tmp_path / "photos", "--out", out, "--workers", "1")
    assert "2 images, 1 of them without an answer" in result.stdout
    assert "images/s, 1 workers" in result.stdout and "peak memory after the first part" in result.stdout
    assert "not scored: 1 hidden" in result.stderr
    assert "no answer: " in result.stderr and "2.png: cannot decode" in result.stderr
    assert pq.read_table(out)["label"].null_count == 1
    again = run_cli("score", artefact, tmp_path / "photos", "--out", out, "--json")
    found: dict[str, Any] = json.loads(again.stdout)
    assert (found["images"], found["errors"], found["scored"]) == (2, 1, 0)


def test_bench_score_keeps_its_row(tmp_path, monkeypatch):
    artefact = _write(tmp_path)
    (tmp_path / "photos" / "2.png").unlink()
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))

    def alternate(commands, rounds):
        for number in range(rounds):
            for way in commands:
                yield (
                    way,
                    number,
                    {"images_per_s": 95.0 if way == "score" else 100.0, "peak_mb": 1, "worker_peak_mb": 2},
                )

    monkeypatch.setattr(bench.scoring, "alternate", alternate)
    result = run_cli("bench", "score", artefact, tmp_path / "photos", "--rounds", "2")
    assert "95.0 images/s" in result.stdout and "95.0% (95.0% to 95.0%) of the fastest loop" in result.stdout
    (row,) = read(tmp_path / "bench" / SCORE)
    assert (row["artefact"], row["ratio"], row["n"]) == ("tiny", 0.95, 1)
