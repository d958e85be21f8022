import json
from types import SimpleNamespace

import anyio
import pytest

from serve.protocols import admin
from serve.protocols.http import Call, Refused, refusal
from tests.serve.conftest import write_artefact
from tests.serve.models.repositories import serving
from zoo.base.errors import PocketzooError


@pytest.fixture
def models(tmp_path):
    write_artefact(tmp_path / "a" / "model.onnx", seed=1, top1=0.9)
    write_artefact(tmp_path / "b" / "model.int8.onnx", seed=2, top1=0.5)
    return tmp_path


@pytest.fixture
def ask(models):
    """ask(method, rest, body): status and JSON of one request to /admin/<rest>."""
    with serving(models) as (repository, _):

        def send(method, rest, body=b""):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()

            async def read(call, limit, *, admit):
                assert not admit
                assert len(data) <= limit
                return data

            call = Call(receive=None, method=method, path=f"/admin/{rest}", headers={}, request_id="r")
            runtime = SimpleNamespace(repository=repository, read=read)
            try:
                reply = anyio.run(admin.handle, runtime, call, rest)
            except PocketzooError as error:
                return refusal(error).status, str(error)
            return reply.status, json.loads(reply.body)

        send.repository = repository
        yield send


def test_everything_is_listed(ask):
    status, answer = ask("GET", "models")
    assert (status, answer["default"]) == (200, "a")
    assert [(model["name"], model["pinned"]) for model in answer["models"]] == [("a", None), ("b-int8", None)]


def test_a_reload_reports_what_it_found(ask, models):
    write_artefact(models / "a" / "model.onnx", seed=3)
    write_artefact(models / "c" / "model.onnx", seed=4)
    assert ask("POST", "reload") == (200, {"added": ["c"], "changed": ["a"], "removed": [], "refused": {}})
    (models / "a" / "model.onnx").write_bytes(b"broken")
    status, answer = ask("POST", "reload")
    assert (status, list(answer["refused"])) == (200, ["a"])


def test_roll_back_and_unpin(ask, models):
    old = ask.repository.get("a").version
    write_artefact(models / "a" / "model.onnx", seed=3)
    ask("POST", "reload")
    new = ask.repository.get("a").version
    for body in (b"", {}, {"version": None}, {"version": old}):
        status, answer = ask("POST", "models/a:rollback", body)
        assert (status, answer["name"], answer["version"], answer["pinned"]) == (200, "a", old, old)
        status, answer = ask("POST", "models/a:unpin")
        assert (status, answer["version"], answer["pinned"]) == (200, new, None)
    assert ask("POST", "models/a:rollback", {"version": "0" * 12})[0] == 404


def test_split_and_shadow(ask):
    status, answer = ask("PUT", "models/a/split", {"to": "b-int8", "percent": 20})
    assert (status, answer["split"]) == (200, {"to": "b-int8", "version": None, "percent": 20.0})
    assert ask.repository.route("a", unit=0.1).name == "b-int8"
    status, answer = ask("PUT", "models/a/shadow", {"to": "b-int8"})
    assert (status, answer["shadow"]) == (200, {"to": "b-int8", "version": None})
    for what in ("split", "shadow"):
        for _ in range(2):
            status, answer = ask("DELETE", f"models/a/{what}")
            assert (status, answer[what]) == (200, None)


def test_other_labels_are_422(ask, models, monkeypatch):
    monkeypatch.setattr("tests.serve.conftest.LABELS", ("one", "two"))
    write_artefact(models / "c" / "model.onnx", seed=3)
    ask("POST", "reload")
    status, sentence = ask("PUT", "models/a/split", {"to": "c", "percent": 20})
    assert status == 422
    assert "must have the same labels in the same order; they have 3 (cat, dog, fox) and 2 (one, two)" in sentence


@pytest.mark.parametrize(
    ("method", "rest", "status", "says"),
    [
        ("GET", "", 404, "no such route: '/admin/'; there are GET /admin/models"),
        ("GET", "models/", 404, "no such route"),
        ("GET", "models/a", 404, "no such route"),
        ("POST", "models/:rollback", 404, "no such route"),
        ("POST", "models/a:explode", 404, "no such route"),
        ("POST", "reload/x", 404, "no such route"),
        ("POST", "models", 405, "expected GET, got POST"),
        ("GET", "reload", 405, "expected POST, got GET"),
        ("GET", "models/a:rollback", 405, "expected POST, got GET"),
        ("PUT", "models/a:unpin", 405, "expected POST, got PUT"),
        ("POST", "models/a/split", 405, "expected PUT or DELETE, got POST"),
        ("POST", "models/aa:unpin", 404, "unknown model 'aa'; did you mean a"),
        ("POST", "models/vit/model.int8.onnx:rollback", 404, "unknown model 'vit/model.int8.onnx'"),
        ("DELETE", "models/aa/shadow", 404, "unknown model 'aa'"),
    ],
)
def test_unknown_routes_methods_and_models(ask, method, rest, status, says):
    found, sentence = ask(method, rest)
    assert found == status
    assert says in sentence


@pytest.mark.parametrize(
    ("rest", "body", "says"),
    [
        ("split", b"{", "expected a JSON object with `to`, a model or a version, and `percent`: "),
        ("split", b"\xff", "expected a JSON object"),
        ("split", b"[" * 60_000, "expected a JSON object"),
        ("split", b"", "body: key 'to' is missing"),
        ("split", {"to": "b-int8"}, "body: key 'percent' is missing"),
        ("split", {"to": "b-int8", "per_cent": 1}, "unknown key 'per_cent'; did you mean percent"),
        ("split", {"to": "b-int8", "percent": "1"}, "body.percent: expected float, got '1'"),
        ("split", {"to": "b-int8", "percent": 101}, "percent: expected a number from 0 to 100, got 101"),
        ("split", {"to": "b-int8", "percent": float("nan")}, "percent: expected a number from 0 to 100, got nan"),
        ("shadow", [], "expected a table of keys"),
        ("shadow", {"to": 1}, "body.to: expected str, got 1"),
    ],
)
def test_malformed_bodies_are_400(ask, rest, body, says):
    status, sentence = ask("PUT", f"models/a/{rest}", body)
    assert status == 400
    assert says in sentence


def test_a_model_that_is_gone_by_the_time_it_is_described(ask, models):
    with pytest.raises(Refused, match="'z' has just been removed"):
        admin._entry(ask.repository, "z")
