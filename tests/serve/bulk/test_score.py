"""Bulk scoring with real processes: complete, interrupted in every way, and continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import serve.bulk.score
from serve.bulk.inputs import Source, open_source
from serve.bulk.partial_results import read_metadata
from serve.bulk.process_pool import Scored
from serve.bulk.score import ScoreConfig, score
from serve.bulk.scorer import Job, Scorer
from tests.zoo.factories import encode, picture, write_artefact
from zoo.base.errors import ArtefactError, DataError, PocketzooError, UsageError
from zoo.base.files import sha256_file

COMMAND = "import serve.bulk.score, zoo.main; serve.bulk.score._PART_ROWS = 128; zoo.main.main()"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.onnx`, a folder of images with a broken one, and 1,200 rows that take some milliseconds each."""
    folder = tmp_path_factory.mktemp("score")
    write_artefact(folder / "model.onnx")
    (folder / "photos").mkdir()
    for seed in range(20):
        (folder / "photos" / f"{seed:02d}.png").write_bytes(encode(picture(seed)))
    (folder / "photos" / "07.png").write_bytes(b"nonsense")
    (folder / "large.png").write_bytes(encode(picture(1, 300, 300)))
    pq.write_table(pa.table({"path": ["large.png"] * 1200}), folder / "many.parquet")
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> pa.Table:
    """The rows of `many.parquet` at batches of 8."""
    path = place / "model.onnx"
    job = Job(
        path=str(path),
        digest=sha256_file(path),
        threads=1,
        engine="onnxruntime",
        batch=8,
        top=5,
        max_pixels=10**6,
        max_image_bytes=10**6,
        formats=("PNG",),
    )
    scorer = Scorer(job)
    return pa.Table.from_batches([scorer(chunk) for chunk in open_source(str(place / "many.parquet"), batch=8).read(0)])


def _in_this_process(monkeypatch: pytest.MonkeyPatch, *, fail_after: int | None = None) -> list[int]:
    """Score without processes, for tests of what is around them; returns the numbers of the chunks it scored."""
    from contextlib import contextmanager

    seen: list[int] = []

    @contextmanager
    def executor(job: Job, source: Source, start: int, workers: int) -> Iterator[tuple[int, Iterator[Scored]]]:
        def results() -> Iterator[Scored]:
            scorer = Scorer(job)
            for chunk in source.read(start):
                if len(seen) == fail_after:
                    raise PocketzooError("a worker process died")
                seen.append(chunk.number)
                yield scorer(chunk), 1

        yield 1, results()

    monkeypatch.setattr(serve.bulk.score, "in_processes", executor)
    return seen


def _config(place: Path, out: Path, **changes: object) -> ScoreConfig:
    values = {"artefact": place / "model.onnx", "source": str(place / "photos"), "batch": 2, "top": 2, "workers": 1}
    return ScoreConfig(**{"out": out} | values | changes)


def test_a_folder_in_two_processes(place, tmp_path):
    report = score(_config(place, tmp_path / "r.parquet", workers=2, command="pocketzoo score"))
    table = pq.read_table(report.out)
    assert (report.images, report.errors, report.scored, report.workers) == (20, 1, 20, 2)
    assert report.examples == (f"{place}/photos/07.png: {table['error'][7]}",)
    assert report.images_per_s > 0 and len(report.memory) == 1 and min(map(min, report.memory)) > 10 << 20
    assert table["row"].to_pylist() == list(range(20))
    assert table["path"].to_pylist() == sorted(table["path"].to_pylist())
    metadata = read_metadata(report.out)
    assert metadata["artefact"] == "tiny" and metadata["command"] == "pocketzoo score"
    assert metadata["artefact_digest"] == sha256_file(place / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]


def test_no_torch_where_pictures_are_scored():
    loaded = "import sys, serve.bulk.score, serve.bulk.process_pool; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("way", ["kill", "worker", "interrupt"])
def test_a_run_that_was_stopped_continues(place, whole, tmp_path, monkeypatch, way):
    out = tmp_path / "r.parquet"
    arguments = ["score", place / "model.onnx", place / "many.parquet", "--out", out, "--workers", "2", "--batch", "8"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    parts = tmp_path / "r.parquet.parts"
    end = time.monotonic() + 60
    while not list(parts.glob("part-*")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    if way == "worker":
        workers[0].kill()
    elif way == "interrupt":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    _, said = process.communicate(timeout=60)
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert "Traceback" not in said
    if way != "kill":
        assert process.returncode == 1
        assert {"worker": "a worker process died at work on large.png", "interrupt": "interrupted"}[way] in said
    done = len(list(parts.glob("part-*")))
    assert done and not out.exists()
    seen = _in_this_process(monkeypatch)
    config = {"source": str(place / "many.parquet"), "batch": 8, "top": 5}
    report = score(_config(place, out, **config))
    assert seen[0] > 0 and seen == list(range(seen[0], 10)) and report.scored < 1200
    assert pq.read_table(out).equals(whole)


def test_what_was_scored_before_a_failure_is_kept(place, tmp_path, monkeypatch):
    config = _config(place, tmp_path / "r.parquet", batch=128, source=str(place / "many.parquet"))
    monkeypatch.setattr(serve.bulk.score, "_PART_ROWS", 10**6)
    seen = _in_this_process(monkeypatch, fail_after=3)
    with pytest.raises(PocketzooError, match="died"):
        score(config)
    again = _in_this_process(monkeypatch)
    assert score(config).scored == 1200 - 3 * 128
    assert seen + again == list(range(10))


def test_a_finished_result_is_left_alone(place, tmp_path, monkeypatch, capsys):
    config = _config(place, tmp_path / "r.parquet")
    seen = _in_this_process(monkeypatch)
    first = score(config)
    before = config.out.stat().st_mtime_ns
    again = score(config)
    assert "is up to date" in capsys.readouterr().err
    assert (again.images, again.errors, again.scored) == (first.images, first.errors, 0)
    assert config.out.stat().st_mtime_ns == before and seen == [0]
    with pytest.raises(UsageError, match="with another settings; --force scores it again"):
        score(_config(place, config.out, top=1))
    assert score(_config(place, config.out, top=1, force=True)).scored == 20
    (tmp_path / "b.parquet").write_bytes(b"mine")
    with pytest.raises(UsageError, match="no result of this command"):
        score(_config(place, tmp_path / "b.parquet"))


def test_limits_are_the_servers(place, tmp_path, monkeypatch):
    _in_this_process(monkeypatch)
    monkeypatch.setenv("POCKETZOO_MAX_PIXELS", "63")
    report = score(_config(place, tmp_path / "r.parquet"))
    assert report.errors == 20 and "63" in report.examples[0]


def test_bad_input_ends_before_anything_is_scored(place, tmp_path, monkeypatch):
    seen = _in_this_process(monkeypatch)
    out = tmp_path / "r.parquet"
    for changes, kind, message in (
        ({"out": tmp_path / "gone" / "r.parquet"}, UsageError, "there is no folder"),
        ({"source": str(tmp_path)}, DataError, "no images below it"),
        ({"artefact": tmp_path}, ArtefactError, "no ONNX file"),
        ({"executor": "rays"}, UsageError, "unknown executor 'rays'; did you mean ray"),
        ({"engine": "openvno"}, UsageError, "unknown engine 'openvno'; did you mean openvino"),
        ({"batch": 0}, UsageError, "--batch: expected at least 1, got 0"),
    ):
        with pytest.raises(kind, match=message):
            score(_config(place, **({"out": out} | changes)))
    assert (seen, list(tmp_path.iterdir())) == ([], [])


def test_a_worker_that_cannot_load_says_why(place, tmp_path):
    job = Job(
        path=str(place / "model.onnx"),
        digest="0" * 64,
        threads=1,
        engine="onnxruntime",
        batch=1,
        top=1,
        max_pixels=1,
        max_image_bytes=1,
        formats=(),
    )
    source = open_source(str(place / "photos"), batch=1)
    with (
        pytest.raises(ArtefactError, match="changed while it was in use"),
        serve.bulk.score.in_processes(job, source, 0, 1),
    ):
        pytest.fail("started")
