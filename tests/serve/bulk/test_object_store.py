"""Images and results on an object store: a server that speaks S3, on this machine."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.bulk.listing import listed, located
from serve.bulk.score import ScoreConfig, score
from tests.serve.bulk.test_score import _in_this_process
from tests.zoo.factories import encode, picture, write_artefact
from zoo.base.errors import DataError, UsageError

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """A file system with a bucket `zoo`, at a server that processes of this one find as well."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.get_host_and_port()[1]}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        system = located("s3://zoo")[0]
        system.mkdir("zoo")
        yield system
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    running.stop()


def _score(place: Path, source: str, out: str, **changes: Any) -> Any:
    return score(
        ScoreConfig(artefact=place / "model.onnx", source=source, out=out, **{"batch": 2, "workers": 1} | changes)
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, store: Any) -> Path:
    """`model.onnx` and `photos` in a folder, the same photographs at s3://zoo/photos and in its Parquet file."""
    folder = tmp_path_factory.mktemp("store")
    write_artefact(folder / "model.onnx")
    images = [encode(picture(seed)) for seed in range(9)]
    images[4], images[5] = b"nonsense", b""
    for number, data in enumerate(images):
        path = folder / "photos" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    store.put(f"{folder}/photos", "zoo/photos", recursive=True)
    store.pipe_file("zoo/photos/notes.txt", b"x")
    with store.open("zoo/list.parquet", "wb") as stream:
        pq.write_table(pa.table({"path": [f"photos/{number % 2}/{number}.png" for number in range(9)]}), stream)
    return folder


def test_pages_of_keys_are_listed_as_they_are_needed(store, monkeypatch):
    store.pipe({f"zoo/many/{number:03d}.png": b"x" for number in range(25)})
    call, asked = type(store).call_s3, []

    def watched(self, method, **options):
        asked.append(method)
        return call(self, method, **options | {"MaxKeys": 10})

    monkeypatch.setattr(type(store), "call_s3", watched)
    found = listed("s3://zoo/many", Counter())[1]
    assert next(found).path == "s3://zoo/many/000.png" and asked == ["list_objects_v2"]
    assert [one.path[-7:] for one in found] == [f"{number:03d}.png" for number in range(1, 25)]
    assert len(asked) == 3
    assert [one.path[-7:] for one in listed("s3://zoo/many/01[0-3].png", Counter())[1]] == [
        f"{number:03d}.png" for number in range(10, 14)
    ]


def test_from_the_store_to_the_store(place, store, monkeypatch):
    report = _score(place, "s3://zoo/photos", "s3://zoo/out", partition=4)
    assert (report.images, report.errors, report.parts) == (9, 2, 3)
    assert dict(report.passed_over) == {"ending in .txt": 1}
    parts = [f"zoo/out/part-{number:05d}.parquet" for number in range(3)]
    assert sorted(store.ls("zoo/out", detail=False)) == ["zoo/out/_SUCCESS", *parts]
    rows = pa.concat_tables([pq.read_table(store.open(part)) for part in parts])
    _in_this_process(monkeypatch)
    here = pq.read_table(_score(place, str(place / "photos"), str(place / "out"), partition=4).out)
    assert rows.drop(["path"]).equals(here.drop(["path"]))
    assert rows["path"][0].as_py() == "s3://zoo/photos/0/0.png"
    assert json.loads(store.cat_file("zoo/out/_SUCCESS"))["errors"] == 2

    store.rm_file(parts[1])
    assert _score(place, "s3://zoo/photos", "s3://zoo/out", partition=4).scored == 4
    store.pipe_file("zoo/photos/0/0.png", b"another")
    with pytest.raises(UsageError, match=r"s3://zoo/out/part-00000\.parquet: expected inputs digest"):
        _score(place, "s3://zoo/photos", "s3://zoo/out", partition=4)
    assert _score(place, "s3://zoo/photos", "s3://zoo/out", partition=9, force=True).errors == 3
    assert sorted(store.ls("zoo/out", detail=False)) == ["zoo/out/_SUCCESS", parts[0]]
    store.put(f"{place}/photos/0/0.png", "zoo/photos/0/0.png")


def test_paths_in_a_parquet_file_are_relative_to_it(place, monkeypatch):
    _in_this_process(monkeypatch)
    report = _score(place, "s3://zoo/list.parquet", str(place / "listed"))
    assert (report.images, report.errors) == (9, 2)


def test_what_is_not_there(place):
    for source, out, kind, message in (
        ("s3://gone/photos", "s3://zoo/x", DataError, "s3://gone/photos: cannot be listed"),
        ("s3://zoo/gone", "s3://zoo/x", DataError, "s3://zoo/gone: no images below it"),
        ("s3://zoo/photos", "s3://gone/x", UsageError, "--out s3://gone/x: expected a folder that can be written"),
        ("s3://zoo/photos", "s3://zoo/photos", UsageError, "found .* in it; name another one"),
    ):
        with pytest.raises(kind, match=message):
            _score(place, source, out)
