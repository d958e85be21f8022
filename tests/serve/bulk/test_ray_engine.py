"""The engine on a real Ray cluster of this machine, in a process of its own: Ray leaves threads and warnings behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.bulk.ray_engine import _ROWS, _by_chunk
from serve.bulk.score import ScoreConfig, score
from serve.bulk.scorer import SCHEMA
from tests.zoo.factories import encode, picture, write_artefact

_COMMANDS = """
import json, sys
import serve.bulk.ray_engine
import zoo.main

connect = serve.bulk.ray_engine._connect

def stay(ray, *arguments):
    connect(ray, *arguments)
    ray.shutdown = lambda: None

serve.bulk.ray_engine._connect = stay
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = ["score", *arguments, "--executor", "ray"]
    try:
        zoo.main.main()
    except SystemExit as end:
        if end.code:
            raise
"""
"""One after the other; the second finds the cluster that the first started, which ends with the process."""


def _ray(*commands: tuple[str, ...], timeout: int = 240, **variables: str) -> subprocess.CompletedProcess[str]:
    quiet = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | variables
    return subprocess.run(
        [sys.executable, "-c", _COMMANDS, json.dumps(commands)],
        env=quiet,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_the_same_rows_as_embedded(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    write_artefact(tmp_path / "model.onnx")
    images = [encode(picture(seed)) for seed in range(150)]
    images[3] = b"nonsense"
    photos, table = tmp_path / "photos", tmp_path / "photos.parquet"
    photos.mkdir()
    for number, data in enumerate(images):
        (photos / f"{number:03d}.png").write_bytes(data)
    pq.write_table(pa.table({"image": [{"bytes": data, "path": None} for data in images]}), table, row_group_size=70)
    sources = {str(source): tmp_path / f"{number}.parquet" for number, source in enumerate((photos, table))}
    options = ("--batch", "8", "--workers", "1")
    done = _ray(
        *((str(tmp_path / "model.onnx"), source, "--out", str(out), *options) for source, out in sources.items())
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("150 images, 1 of them without an answer") == 2
    assert "Traceback" not in done.stderr and "INFO" not in done.stderr and "WARNING" not in done.stderr
    for source, out in sources.items():
        embedded = tmp_path / "embedded.parquet"
        config = ScoreConfig(
            artefact=tmp_path / "model.onnx", source=source, out=embedded, batch=8, workers=1, force=True
        )
        score(config)
        # Bit for bit: the same images stand in the same batches.
        assert pq.read_table(out).equals(pq.read_table(embedded))


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
    done = _ray(arguments, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 1
    assert "error: RAY_ADDRESS=127.0.0.1:1: no cluster answers" in done.stderr and "ray start" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "model.onnx"]
