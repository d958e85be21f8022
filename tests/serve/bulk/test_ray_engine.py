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

from serve.bulk.score import ScoreConfig, score
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
    sources = {str(source): tmp_path / f"ray-{number}" for number, source in enumerate((photos, table))}
    options = ("--batch", "8", "--workers", "1", "--partition", "60")
    commands = [(str(tmp_path / "model.onnx"), source, "--out", str(out), *options) for source, out in sources.items()]
    # The third finds everything done.
    done = _ray(*commands, commands[0])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("150 images, 1 of them without an answer") == 3
    assert done.stderr.count("is up to date") == 1
    assert "Traceback" not in done.stderr and "INFO" not in done.stderr and "WARNING" not in done.stderr
    for source, out in sources.items():
        embedded = tmp_path / f"embedded-{out.name}"
        score(
            ScoreConfig(
                artefact=tmp_path / "model.onnx", source=source, out=str(embedded), batch=8, workers=1, partition=60
            )
        )
        names = [f"part-{number:05d}.parquet" for number in range(3)]
        assert sorted(path.name for path in out.iterdir()) == ["_SUCCESS", *names]
        # Bit for bit: the same images stand in the same batches.
        assert all(pq.read_table(out / name).equals(pq.read_table(embedded / name)) for name in names)
    refused = _ray((*commands[0], "--top", "1"))
    assert refused.returncode == 2
    assert "part-00000.parquet: expected settings {'top': 1}, found {'top': 5}; --force" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_cluster_that_does_not_answer(tmp_path):
    pytest.importorskip("ray")
    write_artefact(tmp_path / "model.onnx")
    (tmp_path / "1.png").write_bytes(encode(picture(1)))
    arguments = (str(tmp_path / "model.onnx"), str(tmp_path / "1.png"), "--out", str(tmp_path / "r"))
    done = _ray(arguments, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 1
    assert "error: RAY_ADDRESS=127.0.0.1:1: no cluster answers" in done.stderr and "ray start" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "model.onnx"]
