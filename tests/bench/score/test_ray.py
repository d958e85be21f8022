"""The engine on a real Ray cluster of this machine, in a process of its own: Ray leaves threads and warnings behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.score.ray import _ROWS, _by_chunk
from bench.score.run import ScoreConfig, score
from bench.score.worker import SCHEMA
from tests.zoo.factories import encode, picture, write_artefact


def _ray(*arguments: str, timeout: int = 240, **variables: str) -> subprocess.CompletedProcess[str]:
    quiet = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | variables
    code = "import zoo.cli.main; zoo.cli.main.main()"
    return subprocess.run(
        [sys.executable, "-c", code, "score", *arguments, "--engine", "ray"],
        env=quiet,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize("kind", ["files", "parquet"])
def test_the_same_rows_as_embedded(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("ray")
    write_artefact(tmp_path / "model.onnx")
    images = [encode(picture(seed)) for seed in range(150)]
    images[3] = b"nonsense"
    if kind == "files":
        source = tmp_path / "photos"
        source.mkdir()
        for number, data in enumerate(images):
            (source / f"{number:03d}.png").write_bytes(data)
    else:
        source = tmp_path / "photos.parquet"
        rows = [{"bytes": data, "path": None} for data in images]
        pq.write_table(pa.table({"image": rows}), source, row_group_size=70)
    out = tmp_path / "ray.parquet"
    done = _ray(str(tmp_path / "model.onnx"), str(source), "--out", str(out), "--batch", "8", "--workers", "1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "150 pictures, 1 of them without an answer" in done.stdout
    assert "Traceback" not in done.stderr and "INFO" not in done.stderr and "WARNING" not in done.stderr
    score(
        ScoreConfig(
            artefact=tmp_path / "model.onnx", source=str(source), out=tmp_path / "r.parquet", batch=8, workers=1
        )
    )
    # Bit for bit: the same pictures stand in the same batches.
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "r.parquet"))


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1] * 7, [2, 0, 5]])
def test_chunks_are_found_in_whatever_tables_come(sizes):
    rows = [{"row": row, "path": "x", "_chunk": row // 3, "_memory": row} for row in range(7)]
    table = pa.Table.from_pylist(rows, schema=_ROWS)
    tables, first = [], 0
    for size in sizes:
        tables.append(table.slice(first, size))
        first += size
    found = list(_by_chunk(iter(tables)))
    assert [(batch["row"].to_pylist(), memory) for batch, memory in found] == [
        ([0, 1, 2], 2),
        ([3, 4, 5], 5),
        ([6], 6),
    ]
    assert all(batch.schema == SCHEMA for batch, _ in found)


def test_a_cluster_that_does_not_answer(tmp_path):
    pytest.importorskip("ray")
    write_artefact(tmp_path / "model.onnx")
    (tmp_path / "1.png").write_bytes(encode(picture(1)))
    arguments = (str(tmp_path / "model.onnx"), str(tmp_path / "1.png"), "--out", str(tmp_path / "r.parquet"))
    done = _ray(*arguments, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 1
    assert "error: RAY_ADDRESS=127.0.0.1:1: no cluster answers" in done.stderr and "ray start" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "model.onnx"]
