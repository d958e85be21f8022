"""Bulk scoring with real processes: complete, interrupted in every way, and continued."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import serve.bulk.process_pool
import serve.bulk.score
from serve.bulk.inputs import Source
from serve.bulk.parts import METADATA, Parts, Summary
from serve.bulk.reading import read
from serve.bulk.score import ScoreConfig, score
from serve.bulk.scorer import Job, Scorer
from tests.zoo.factories import encode, picture, write_artefact
from zoo.base.errors import ArtefactError, DataError, PocketzooError, UsageError
from zoo.base.files import sha256_file


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
    scorer = Scorer(_job(place, batch=8, top=5, max_pixels=10**6, max_image_bytes=10**6, formats=("PNG",)))
    (partition,) = Source(text=str(place / "many.parquet"), size=1200).partitions()
    return pa.Table.from_batches(map(scorer, read(partition, batch=8, most=1)))


def _job(place: Path, **changes: object) -> Job:
    path = place / "model.onnx"
    values = {"threads": 1, "engine": "onnxruntime", "batch": 1, "top": 1, "max_pixels": 1, "max_image_bytes": 1}
    return Job(**{"path": str(path), "digest": sha256_file(path), "formats": ()} | values | changes)


def _in_this_process(monkeypatch: pytest.MonkeyPatch, *, fail_after: int | None = None) -> list[int]:
    """Score without processes, for tests of what is around them; returns the numbers of the partitions it scored."""
    seen: list[int] = []

    @contextmanager
    def executor(
        job: Job, source: Source, parts: Parts, workers: int, scored: Callable[[int], None]
    ) -> Iterator[tuple[int, Iterator[tuple[Summary, int]]]]:
        def results() -> Iterator[tuple[Summary, int]]:
            scorer = Scorer(job)
            for partition in source.partitions():
                summary = parts.find(partition)
                if summary is None:
                    if len(seen) == fail_after:
                        raise PocketzooError("a worker process died")
                    seen.append(partition.number)
                    chunks = read(partition, batch=job.batch, most=job.max_image_bytes)
                    summary = parts.write(partition, map(scorer, chunks))
                    scored(summary.rows)
                yield summary, 1

        yield 1, results()

    monkeypatch.setattr(serve.bulk.score, "in_processes", executor)
    return seen


def _config(place: Path, out: Path, **changes: object) -> ScoreConfig:
    values = {"artefact": place / "model.onnx", "source": str(place / "photos"), "batch": 2, "top": 2, "workers": 1}
    return ScoreConfig(**{"out": str(out)} | values | changes)


def test_a_folder_in_two_processes(place, tmp_path):
    config = _config(place, tmp_path / "r", workers=2, partition=6, command="pocketzoo score")
    report = score(config)
    table = pq.read_table(report.out)
    assert (report.images, report.errors, report.scored, report.workers, report.parts) == (20, 1, 20, 2, 4)
    assert report.examples == [f"{place}/photos/07.png: {table['error'][7]}"]
    assert report.images_per_s > 0 and len(report.memory) == 2 and min(map(min, report.memory)) > 10 << 20
    assert table["row"].to_pylist() == list(range(20))
    assert table["path"].to_pylist() == sorted(table["path"].to_pylist())
    names = [f"part-{number:05d}.parquet" for number in range(4)]
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["_SUCCESS", *names]
    known = json.loads(pq.read_metadata(tmp_path / "r" / names[1]).metadata[METADATA])
    assert known["artefact"] == "tiny" and known["command"] == "pocketzoo score" and known["settings"]["top"] == 2
    assert known["artefact_digest"] == sha256_file(place / "model.onnx")
    said = json.loads((tmp_path / "r" / "_SUCCESS").read_text())
    assert (said["images"], said["errors"], said["passed_over"]) == (20, 1, {})
    # What is missing is made again, by processes that begin with it.
    (tmp_path / "r" / names[1]).unlink()
    again = score(config)
    assert (again.images, again.errors, again.scored, again.parts) == (20, 1, 6, 4)
    assert pq.read_table(report.out).equals(table)
    # Where nothing is missing, there are no processes.
    last = score(config)
    assert (last.images, last.errors, last.examples, last.scored) == (20, 1, report.examples, 0)
    assert (last.workers, last.images_per_s, last.memory) == (0, 0.0, [])


def test_no_torch_where_pictures_are_scored():
    loaded = "import sys, serve.bulk.score, serve.bulk.process_pool; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("way", ["kill", "worker", "interrupt"])
def test_a_run_that_was_stopped_continues(place, whole, tmp_path, monkeypatch, way):
    out = tmp_path / "r"
    options = ["--workers", "2", "--batch", "8", "--partition", "128"]
    arguments = ["score", place / "model.onnx", place / "many.parquet", "--out", out, *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "zoo", *map(str, arguments)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 200
    while not list(out.glob("part-*")):
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
        assert not list(out.glob(".*"))
    done = len(list(out.glob("part-*")))
    assert done and not (out / "_SUCCESS").exists()
    seen = _in_this_process(monkeypatch)
    report = score(_config(place, out, source=str(place / "many.parquet"), batch=8, top=5, partition=128))
    assert seen == list(range(done, 10)) and report.scored == 1200 - 128 * done
    assert pq.read_table(out).equals(whole)


def test_parts_before_a_failure_are_kept(place, tmp_path, monkeypatch):
    config = _config(place, tmp_path / "r", partition=5)
    seen = _in_this_process(monkeypatch, fail_after=3)
    with pytest.raises(PocketzooError, match="died"):
        score(config)
    again = _in_this_process(monkeypatch)
    assert score(config).scored == 5
    assert seen + again == list(range(4))


def test_a_finished_result_is_left_alone(place, tmp_path, monkeypatch, capsys):
    config = _config(place, tmp_path / "r")
    seen = _in_this_process(monkeypatch)
    first = score(config)
    part = tmp_path / "r" / "part-00000.parquet"
    before = part.stat().st_mtime_ns
    again = score(config)
    assert "is up to date" in capsys.readouterr().err
    assert (again.images, again.errors, again.scored) == (first.images, first.errors, 0)
    assert part.stat().st_mtime_ns == before and seen == [0]
    with pytest.raises(UsageError, match=r"expected settings \{'top': 1\}, found \{'top': 2\}; --force scores"):
        score(_config(place, tmp_path / "r", top=1))
    assert score(_config(place, tmp_path / "r", top=1, force=True)).scored == 20


def test_shards_and_what_is_not_scored_of_them(place, tmp_path, monkeypatch):
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as tar:
            for path in sorted((place / "photos").iterdir())[10 * shard : 10 * shard + 10]:
                tar.add(path, path.name)
                tar.addfile(tarfile.TarInfo(f"{path.stem}.cls"), io.BytesIO())
    (tmp_path / "shards" / "notes.txt").write_text("x")
    seen = _in_this_process(monkeypatch)
    config = _config(place, tmp_path / "r", source=str(tmp_path / "shards"))
    passed = {"ending in .cls": 20, "ending in .txt": 1}
    for scored in (20, 0):
        report = score(config)
        assert (report.images, report.errors, report.scored, dict(report.passed_over)) == (20, 1, scored, passed)
    assert seen == [0, 1]
    files = score(_config(place, tmp_path / "files"))
    rows, others = pq.read_table(tmp_path / "r"), pq.read_table(files.out)
    assert rows["row"].to_pylist() == [*range(10), *range(10)]
    assert rows.drop(["row", "path"]).equals(others.drop(["row", "path"]))


def test_limits_are_the_servers(place, tmp_path, monkeypatch):
    _in_this_process(monkeypatch)
    monkeypatch.setenv("POCKETZOO_MAX_PIXELS", "63")
    report = score(_config(place, tmp_path / "r"))
    assert report.errors == 20 and "63" in report.examples[0]


def test_bad_input_ends_before_anything_is_scored(place, tmp_path, monkeypatch):
    seen = _in_this_process(monkeypatch)
    for changes, kind, message in (
        ({"out": tmp_path / "gone" / "r"}, UsageError, "expected a folder that can be written"),
        ({"source": str(tmp_path)}, DataError, "no images below it"),
        ({"artefact": tmp_path}, ArtefactError, "no ONNX file"),
        ({"executor": "rays"}, UsageError, "unknown executor 'rays'; did you mean ray"),
        ({"engine": "openvno"}, UsageError, "unknown engine 'openvno'; did you mean openvino"),
        ({"batch": 0}, UsageError, "--batch: expected at least 1, got 0"),
        ({"partition": 0}, UsageError, "--partition: expected at least 1, got 0"),
    ):
        with pytest.raises(kind, match=message):
            score(_config(place, **({"out": tmp_path / "r"} | changes)))
    assert (seen, list(tmp_path.iterdir())) == ([], [])


def test_a_worker_that_cannot_load_says_why(place, tmp_path):
    source = Source(text=str(place / "photos"), size=20)
    parts = Parts(out=str(tmp_path), decides={}, about={})
    with (
        pytest.raises(ArtefactError, match="changed while it was in use"),
        serve.bulk.process_pool.in_processes(_job(place, digest="0" * 64), source, parts, 1, lambda _: None),
    ):
        pytest.fail("started")
