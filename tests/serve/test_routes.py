"""The transport, in this process: what a client gets for what it sends."""

import base64
import contextlib
import hashlib
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from serve.protocols.schema import ModelsResponse, PredictResponse
from tests.serve.conftest import BENTOML_WARNINGS
from zoo.artefact.predictor import Predictor
from zoo.base.files import sha256_file

pytestmark = BENTOML_WARNINGS


@contextlib.contextmanager
def serving(output: Path, **variables: str):
    """A client of a server in this process, with POCKETZOO_<name> set for it."""
    from serve.service import Classifier

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETZOO_MODELS", str(output))
        for name, value in {"THREADS": "1", "LOG": "off", **variables}.items():
            patch.setenv(f"POCKETZOO_{name}", value)
        with TestClient(Classifier.to_asgi()) as client:
            yield client


@pytest.fixture(scope="module")
def client(output):
    limits = {"MAX_IMAGES": "9", "MAX_IMAGE_BYTES": "200000", "MAX_REQUEST_BYTES": "500000", "MAX_PIXELS": "1000000"}
    with serving(output, **limits) as client:
        yield client


def _waiting() -> int:
    import bentoml

    return bentoml.get_current_service().runtime.engine.waiting


def wait_until(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("did not come true in five seconds")


def _post(client, *images: bytes, **data: str):
    return client.post("/predict", files=[("images", (f"{i}.png", image)) for i, image in enumerate(images)], data=data)


def _raw(client, image: bytes, path: str = "/v1/predict", **headers: str):
    sent = {"Content-Type": "image/png"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(path, content=image, headers=sent)


def _base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _error(response, status=400) -> str:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert response.headers["X-Request-Id"]
    return response.json()["error"]


def _jpeg(**options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(
        stream, "JPEG", **options
    )
    return stream.getvalue()


def test_one_image_gets_the_answer_of_the_predictor(client, output, draw):
    path = output / "good" / "model.onnx"
    (expected,) = Predictor(path, threads=1).predict([draw(0)])
    answer = _post(client, draw(0)).json()
    assert (answer["model"], answer["digest"]) == ("good", sha256_file(path))
    (prediction,) = answer["predictions"]
    assert prediction["label"] == expected.labels[0]
    assert tuple(entry["label"] for entry in prediction["probabilities"]) == expected.labels
    assert [entry["probability"] for entry in prediction["probabilities"]] == pytest.approx(
        expected.probabilities, abs=1e-6
    )


def test_more_images_than_one_inference_takes_are_answered_in_order(client, draw):
    images = [draw(seed) for seed in range(9)]
    singles = [_post(client, image).json()["predictions"][0] for image in images]
    assert len({single["label"] for single in singles}) > 1
    together = _post(client, *images).json()["predictions"]
    for single, one in zip(singles, together, strict=True):
        assert one["label"] == single["label"]
        assert one["probabilities"][0]["probability"] == pytest.approx(
            single["probabilities"][0]["probability"], abs=1e-6
        )


# The quoted name and null are what BentoML's client sends.
@pytest.mark.parametrize(
    ("sent", "answers"),
    [("other", "other"), ('"other-int8"', "other-int8"), ("null", "good"), ("", "good")],
)
def test_a_model_is_asked_for_by_name(client, draw, sent, answers):
    assert _post(client, draw(0), model=sent).json()["model"] == answers


def test_models_lists_every_artefact_and_what_is_wrong_with_it(client, output):
    answer = client.get("/models").json()
    assert answer["default"] == "good"
    models = {model.pop("name"): model for model in answer["models"]}
    assert list(models) == ["good", "liar", "other", "other-int8", "torn"]
    assert models["good"] == {
        "file": "good/model.onnx",
        "digest": sha256_file(output / "good" / "model.onnx"),
        "bytes": (output / "good" / "model.onnx").stat().st_size,
        "precision": "float32",
        "classes": 3,
        "labels": ["cat", "dog", "fox"],
        "input": {"colour": "RGB", "size": [8, 8]},
        "accuracy": {"dataset": "d", "split": "validation", "n": 9, "top1": 0.9},
        "version": sha256_file(output / "good" / "model.onnx")[:12],
        "loaded": True,
        "engine": "onnxruntime",
        "engine_reason": "onnxruntime: asked for",
        "error": None,
    }
    assert models["torn"]["error"].startswith("torn/model.onnx: not a readable ONNX file")
    assert models["torn"]["classes"] is None


def test_ready_documented_and_described_for_bentoml_s_client(client):
    assert client.get("/readyz").status_code == 200
    schemas = client.get("/docs.json").json()["components"]["schemas"]
    assert "probabilities" in json.dumps(schemas["ImagePrediction"])
    (route,) = client.get("/schema.json").json()["routes"]
    assert route["route"] == "/predict"
    assert route["input"]["properties"]["images"]["items"] == {"format": "binary", "type": "file"}
    assert route["input"]["required"] == ["images"]


def test_the_documented_schema_is_what_is_answered(client, draw):
    for response in (_post(client, draw(0), draw(1)), _raw(client, draw(0))):
        answer = PredictResponse.model_validate(response.json())
        assert answer.model_dump(exclude_none=True) == response.json()
    listed = client.get("/models").json()
    assert ModelsResponse.model_validate(listed).model_dump() == listed


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/models/good:predict"])
def test_a_raw_body_gets_the_same_answer_as_a_form(client, draw, path):
    form, raw = _post(client, draw(0)).json(), _raw(client, draw(0), path).json()
    for volatile in ("request_id", "milliseconds"):
        form.pop(volatile), raw.pop(volatile)
    assert raw == form


def test_models_and_versions_are_named_in_the_path(client, draw, output):
    version = sha256_file(output / "other" / "model.int8.onnx")[:12]
    for path in ("/v1/models/other-int8:predict", f"/v1/models/other-int8/versions/{version}:predict"):
        answer = _raw(client, draw(0), path).json()
        assert (answer["model"], answer["version"]) == ("other-int8", version)
    assert "other-int8" in _error(_raw(client, draw(0), "/v1/models/other-int8/versions/0:predict"), 404)
    assert "did you mean other" in _error(_raw(client, draw(0), "/v1/models/othre:predict"), 404)
    assert "no such route" in _error(_raw(client, draw(0), "/v1/model/good"), 404)
    assert "expected GET" in _error(_raw(client, draw(0), "/v1/models/good"), 405)


def test_the_time_of_every_stage_is_told(client, draw):
    spent = _post(client, draw(0)).json()["milliseconds"]
    assert [stage for stage in spent if stage != "load"] == ["read", "queue", "decode", "preprocess", "infer", "total"]
    assert all(value >= 0 for value in spent.values())
    assert sum(spent.values()) - spent["total"] <= spent["total"]


def test_a_request_keeps_its_id_and_its_trace(client, draw):
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    response = _raw(client, draw(0), X_Request_Id="mine-1", traceparent=parent)
    assert response.headers["X-Request-Id"] == response.json()["request_id"] == "mine-1"
    assert response.headers["traceparent"].startswith("00-4bf92f3577b34da6a3ce929d0e0e4736-")
    assert response.headers["traceparent"] != parent
    assert _raw(client, draw(0), X_Request_Id="a b\x01").json()["request_id"] != "a b\x01"


def test_unsure_answers_are_marked(output, draw):
    with serving(output, ABSTAIN="0.999999") as client:
        assert _raw(client, draw(0)).json()["predictions"][0]["abstained"] is True
    with serving(output, ABSTAIN="0.000001") as client:
        assert _raw(client, draw(0)).json()["predictions"][0]["abstained"] is False


@pytest.mark.parametrize(
    ("image", "sentence", "status"),
    [
        (b"", "the image is empty", 415),
        (b"hello", "not an image", 415),
        (_jpeg()[:-400], "cannot decode the image: image file is truncated", 422),
        (b"x" * 200_001, "at most 200000 are accepted", 413),
    ],
)
def test_a_bad_image_is_refused_with_its_own_status(client, image, sentence, status):
    error = _error(_post(client, image), status)
    assert sentence in error
    assert "'0.png'" in error
    assert sentence in _error(_raw(client, image), status)


def test_the_bad_image_of_several_is_named(client, draw):
    assert _error(_post(client, draw(0), b"hello", draw(1)), 415).startswith("image 2 of 3, '1.png': ")


@pytest.mark.parametrize("mode", ["RGBA", "L"])
@pytest.mark.parametrize("budget", ["200000000", "40000000"])
def test_large_images_are_decoded_beside_the_slots_or_refused(output, mode, budget):
    def saved(size):
        stream = io.BytesIO()
        Image.new(mode, size, "gray").save(stream, "PNG")
        return stream.getvalue()

    with serving(output, DECODE_BYTES=budget, SLOTS="2", MAX_PIXELS="25000000") as client:
        small = _raw(client, saved((20, 16))).json()["predictions"]
        # About 8 bytes per pixel: 32 MB and 8 MB to spare.
        large = _raw(client, saved((2000, 2001)))
        several = _post(client, *[saved((2000, 2001))] * 3, saved((20, 16)))
        if budget == "200000000":
            assert large.json()["predictions"] == small
            assert several.json()["predictions"] == 4 * small
        else:
            wanted = (
                f"the PNG image of 2000 x 2001 pixels ({mode}) takes up to 40 MB of memory to decode, at most 20 MB"
            )
            assert wanted in _error(large, 413)
            assert wanted in _error(several, 413)
        assert _raw(client, saved((20, 16))).json()["predictions"] == small


def test_too_many_pixels_are_refused_from_the_header(client):
    stream = io.BytesIO()
    Image.new("L", (5000, 5000)).save(stream, "PNG")
    assert "5000 x 5000 pixels, at most 1000000" in _error(_post(client, stream.getvalue()), 413)


@pytest.mark.parametrize("content_type", ["image/jpg", "image/jpeg", "application/octet-stream", "text/plain"])
def test_the_declared_type_of_an_image_in_a_form_does_not_matter(client, content_type):
    response = client.post("/predict", files={"images": ("a.jpg", _jpeg(), content_type)})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "text/uri-list",
        "application/vnd.bentoml+pickle",
        "multipart/form-data",
        "application/x-www-form-urlencoded",
    ],
)
def test_a_body_is_taken_for_what_its_bytes_are(client, draw, media_type):
    assert _raw(client, draw(0), Content_Type=media_type).json()["predictions"] == _answer(client, draw(0))
    if media_type == "application/json":
        assert "expected JSON like" in _error(_raw(client, b"hello", Content_Type=media_type), 400)
    else:
        assert "expected an image" in _error(_raw(client, b"hello", Content_Type=media_type), 415)


def _answer(client, image):
    return _raw(client, image).json()["predictions"]


@pytest.mark.parametrize("media_type", ["application/json", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize("path", ["/v1/models/good:predict", "/v1/models/other-int8:predict", "/v1/predict"])
def test_kserve_s_v1_json_gets_the_answers_of_its_images(client, draw, path, media_type):
    instances = [{"image_bytes": {"b64": _base64(draw(0))}}, {"b64": _base64(draw(1))}]
    document = {"signature_name": "serving_default", "instances": instances}
    answer = client.post(path, content=json.dumps(document), headers={"Content-Type": media_type}).json()
    assert answer["predictions"] == [_raw(client, draw(seed), path).json()["predictions"][0] for seed in (0, 1)]


@pytest.mark.parametrize(
    ("document", "status", "expected"),
    [
        ({"instances": []}, 400, "length >= 1"),
        ({"inputs": []}, 400, "missing required field `instances`"),
        ({"instances": [{}]}, 400, "`instances[0]`: expected either `image_bytes` or `b64`"),
        ({"instances": [{"b64": "AA==", "image_bytes": {"b64": "AA=="}}]}, 400, "`instances[0]`: expected either"),
        ({"instances": [[0.5, 0.1]]}, 400, "Expected `object`, got `array`"),
        ({"instances": [{"b64": "%%%"}]}, 400, "Invalid base64"),
        ({"instances": [{"b64": "AAAA"}]}, 415, "not an image"),
        ({"instances": [{"b64": _base64(bytes(200_001))}]}, 413, "the image has 200001 bytes, at most 200000"),
        ({"instances": [{"b64": "AAAA"}] * 10}, 413, "10 images, at most 9 at once"),
        ({"instances": [{}] * 900}, 413, "more objects and strings than"),
    ],
)
def test_v1_json_that_does_not_fit_is_refused_in_a_sentence(client, document, status, expected):
    assert expected in _error(client.post("/v1/models/good:predict", json=document), status)


def test_v1_names_models_and_says_whether_they_can_be_asked(client):
    assert client.get("/v1/models").json() == {"models": ["good", "liar", "other", "other-int8", "torn"]}
    assert client.get("/v1/models/other").json() == {"name": "other", "ready": True}
    assert "golden self-check failed" in _error(client.get("/v1/models/liar"), 503)
    assert "unknown model 'oter'; did you mean other" in _error(client.get("/v1/models/oter"), 404)


@pytest.mark.parametrize("field", ["images", "image", "file"])
def test_the_field_of_a_form_has_the_names_that_clients_give_it(client, draw, field):
    files = [(field, ("a.png", draw(0))), ("images", ("b.png", draw(1)))]
    answer = client.post("/predict", files=files).json()
    assert answer["predictions"] == [_answer(client, draw(seed))[0] for seed in (0, 1)]


def test_what_is_asked_about_is_not_loaded(output):
    with serving(output, CHECK_SECONDS="0") as client:
        for path in ("/models", "/v1/models/other", "/v2/models/other", "/v2/models/other/ready"):
            assert client.get(path).status_code == 200
        listed = client.get("/models").json()["models"]
        assert [model["name"] for model in listed if model["loaded"]] == ["good"]
        assert client.get("/v2/models/other").json()["versions"] == [listed[2]["version"]]
        assert "unknown version" in _error(client.get("/v2/models/other/versions/1"), 404)


def test_an_encoded_body_is_refused_rather_than_misread(client, draw):
    assert "Content-Encoding 'gzip'" in _error(_raw(client, draw(0), Content_Encoding="gzip"), 415)
    assert _raw(client, draw(0), Content_Encoding="identity").status_code == 200


def _in_process(server, path, receive):
    """What the way in sends for one POST, without a web server or BentoML around it."""
    import asyncio

    from serve.routes import Front

    async def starting(scope, receive, send):
        await send({"type": "lifespan.startup.complete"})

    async def ask():
        sent = []

        async def send(message):
            sent.append(message)

        front = Front(starting, lambda: server)
        await front({"type": "lifespan"}, receive, send)
        await front({"type": "http", "method": "POST", "path": path, "headers": []}, receive, send)
        return sent[1:]

    return asyncio.run(ask())


@pytest.mark.parametrize(("path", "body", "status"), [("/v1/predict", None, 408), ("/v1/predict", b"x", 504)])
def test_a_request_has_so_much_time(output, monkeypatch, path, body, status):
    import asyncio

    from serve.settings import Settings
    from serve.worker import Runtime

    async def stall(*_, **__):
        await asyncio.sleep(60)

    async def receive():
        return {"type": "http.request", "body": body} if body else await stall()

    monkeypatch.setattr(Runtime, "classify", stall)
    server = Runtime(Settings(models=output, log="off", timeout_seconds=0.05))
    start, answer = _in_process(server, path, receive)
    server.close()
    assert start["status"] == status
    assert b"within 0.05 s (POCKETZOO_TIMEOUT_SECONDS)" in answer["body"]


def test_a_request_passes_nine_modules_from_the_socket_to_its_prediction(output, draw, monkeypatch):
    import sys

    from serve.settings import Settings
    from serve.worker import Runtime

    async def receive():
        return {"type": "http.request", "body": draw(0)}

    passed, came, predicted = set(), threading.Event(), threading.Event()

    def note(frame, event, _):
        name = frame.f_globals.get("__name__", "")
        if frame.f_code.co_qualname == "_Endpoint.__call__":
            came.set()
            passed.add("serve.connections")  # which reads the socket, where there is one
        if came.is_set() and name == "zoo.artefact.predictor":
            predicted.set()
        elif event == "call" and came.is_set() and not predicted.is_set() and name.startswith("serve."):
            passed.add(name)

    server = Runtime(Settings(models=output, log="off"))
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        start, _ = _in_process(server, "/v1/predict", receive)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        server.close()
    assert (start["status"], predicted.is_set()) == (200, True)
    assert 5 < len(passed) <= 9, sorted(passed)


def test_formats_can_be_left_out(output, draw):
    with serving(output, FORMATS="jpeg") as client:
        assert _raw(client, _jpeg()).status_code == 200
        assert "JPEG" in _error(_raw(client, draw(0)), 415)


@pytest.mark.parametrize(
    "text", ["http://127.0.0.1:9/a.png", "https://example.org/a.png", "file:///etc/passwd", "cat.jpg"]
)
def test_an_address_in_place_of_an_image_is_refused_and_never_fetched(client, text, monkeypatch):
    monkeypatch.setattr("httpx.AsyncClient.send", lambda *_, **__: pytest.fail("fetched"))
    error = _error(client.post("/predict", files={"images": (None, text)}))
    assert "expected a file, got text" in error
    assert "not an image" in _error(_raw(client, text.encode()), 415)


def test_json_and_other_bodies_are_refused(client):
    for body in ({"json": {"images": ["http://127.0.0.1:9/"]}}, {"data": {"images": "http://127.0.0.1:9/"}}, {}):
        assert "expected a multipart form" in _error(client.post("/predict", **body), 415)


def test_too_much_is_refused(client, draw):
    assert "at most 9" in _error(_post(client, *[draw(0)] * 10), 413)
    assert "at most 500000" in _error(_post(client, *[b"x" * 190_000] * 3), 413)


def test_an_unknown_model_is_not_found_and_a_broken_one_is_unavailable(client, draw):
    assert _error(_post(client, draw(0), model="othre"), 404).startswith("unknown model 'othre'; did you mean other")
    assert "golden self-check failed" in _error(_post(client, draw(0), model="liar"), 503)
    assert "not a readable ONNX file" in _error(_post(client, draw(0), model="torn"), 503)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("PUT", "/v1/predict", 405),
        ("POST", "/models", 405),
        ("GET", "/nowhere", 404),
        *[("GET", path, 404) for path in ("/admin", "/admin/models")],
        *[("POST", path, 404) for path in ("/admin/reload", "/admin/models/good:rollback", "/admin/models/good:unpin")],
        *[(method, "/admin/models/good/split", 404) for method in ("PUT", "DELETE")],
        *[(method, "/admin/models/good/shadow", 404) for method in ("PUT", "DELETE")],
    ],
)
def test_other_methods_and_routes_are_refused_in_a_sentence(client, method, path, status):
    response = client.request(method, path)
    assert _error(response, status)
    assert ("Allow" in response.headers) is (status == 405)


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/v1/predict?model=nope", "model"),
        ("POST", "/v1/predict?MODEL", "MODEL"),
        ("POST", "/predict?top=3", "top"),
        ("POST", "/v1/models/good:predict?x=%C3%A9", "x"),
        ("GET", "/models?limit=1", "limit"),
        ("GET", "/v2/models/good?a=&b=", "a"),
        ("GET", "/v2/health/live?verbose=1", "verbose"),
        ("GET", "/metrics?name[]=up", "name[]"),
        ("GET", "/docs.json?x=1", "x"),
    ],
)
def test_a_query_is_refused_by_its_name(client, draw, method, path, name):
    response = client.request(method, path, content=draw(0) if method == "POST" else None)
    assert _error(response, 400).startswith(
        f"unknown query parameter {name!r}: no route takes any; a model is named in"
    )


def test_pages_do_not_mind_a_query(client):
    for path in ("/?utm_source=x", "/page/app.js?v=1", "/docs?x=1", "/v1/predict?"):
        assert client.get(path).status_code == (405 if "predict" in path else 200)


def test_the_documentation_leads_back_to_the_page_where_there_is_one(client, output):
    assert 'href="./"' in client.get("/docs").text
    with serving(output, PAGE="0") as bare:
        assert 'href="./"' not in bare.get("/docs").text
        assert bare.get("/page/app.js").status_code == 404


@pytest.mark.parametrize(("accept", "html"), [("text/html,application/xhtml+xml,*/*;q=0.8", True), ("*/*", False)])
def test_browsers_get_the_page_and_kserve_s_v1_clients_that_the_server_lives(client, output, accept, html):
    with serving(output, PAGE="0") as bare:
        for one, page in ((client, html), (bare, False)):
            answer = one.get("/", headers={"Accept": accept})
            assert (answer.status_code, answer.headers["vary"]) == (200, "accept")
            assert ("<title>pocketzoo</title>" in answer.text) == page
            assert page or answer.json() == {"status": "alive"}


def test_an_error_nobody_expected_is_a_500_without_details(client, draw, monkeypatch):
    monkeypatch.setattr("serve.worker.softmax", lambda *_: 1 / 0)
    assert _error(_raw(client, draw(0)), 500) == "the server failed; its log says why"


def test_keys_open_routes_and_rates_close_them(output, draw, tmp_path):
    keys = {name: f"key-of-{name}" for name in ("user", "slow")}
    entries = {"user": 'role = "predict"', "slow": "rate = 0.001"}
    (tmp_path / "keys.toml").write_text(
        "".join(
            f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(keys[name].encode()).hexdigest()}"\n{entries[name]}\n'
            for name in keys
        )
    )
    (tmp_path / "keys.toml").chmod(0o600)
    with serving(output, KEYS_FILE=str(tmp_path / "keys.toml")) as client:
        assert "API key" in _error(_raw(client, draw(0)), 401)
        assert _raw(client, draw(0), X_API_Key=keys["user"]).status_code == 200
        assert _raw(client, draw(0), Authorization=f"Bearer {keys['slow']}").status_code == 200
        again = _raw(client, draw(0), X_API_Key=keys["slow"])
        assert "rate" in _error(again, 429)
        assert int(again.headers["Retry-After"]) > 900
        assert "API key" in _error(client.get("/models"), 401)
        assert client.get("/models", headers={"X-API-Key": keys["user"]}).status_code == 200
        assert client.get("/docs").status_code == 200
        assert client.get("/readyz").status_code == 200


def test_a_busy_server_says_when_to_come_again(output, draw, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    compute = Predictor.logits

    def slow(predictor, images):
        begun.set()
        assert go_on.wait(30)
        return compute(predictor, images)

    with serving(output, SLOTS="1", QUEUE="1", QUEUE_SECONDS="0") as client, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(Predictor, "logits", slow)
        inside = [pool.submit(_raw, client, draw(0))]
        assert begun.wait(30)
        inside.append(pool.submit(_raw, client, draw(0)))
        wait_until(lambda: _waiting() == 1)
        assert "pocketzoo_queued 1.0" in client.get("/metrics").text
        refused = _raw(client, draw(0))
        assert "the server is busy" in _error(refused, 503)
        assert int(refused.headers["Retry-After"]) >= 1
        assert client.get("/livez").status_code == 200
        go_on.set()
        assert [answer.result(30).status_code for answer in inside] == [200, 200]


def test_batches_give_the_same_answers(output, draw):
    with serving(output, BATCH="on", BATCH_WINDOW_MS="20") as client, ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: _raw(client, draw(seed)).json()["predictions"][0], range(8)))
        assert client.get("/metrics").text.count("pocketzoo_batch_size_bucket")
    with serving(output, BATCH="off") as client:
        for seed, found in enumerate(together):
            expected = _raw(client, draw(seed)).json()["predictions"][0]
            assert found["label"] == expected["label"]
            assert found["probabilities"][0]["probability"] == pytest.approx(
                expected["probabilities"][0]["probability"], abs=1e-6
            )


def test_bentoml_s_api_for_python_answers_like_the_route(output, draw, tmp_path):
    import asyncio

    import bentoml

    path = tmp_path / "0.png"
    path.write_bytes(draw(0))
    with serving(output) as client:
        predict = bentoml.get_current_service().predict.local
        answer = asyncio.run(predict(images=[path], model="other")).model_dump()
        expected = _post(client, draw(0), model="other").json()
    assert answer["predictions"] == expected["predictions"]
    assert answer["digest"] == expected["digest"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_get_an_answer_or_a_sentence(client, draw, data):
    whole = data.draw(st.sampled_from([b"", draw(0), _jpeg(), _jpeg(progressive=True)]))
    changes = data.draw(st.lists(st.tuples(st.integers(0, max(0, len(whole) - 1)), st.binary(max_size=4)), max_size=4))
    image = whole
    for place, replacement in changes:
        image = image[:place] + replacement + image[place + len(replacement) :]
    image = image[: data.draw(st.integers(0, len(image)))] if data.draw(st.booleans()) else image
    for response in (_post(client, image), _raw(client, image)):
        if response.status_code != 200:
            assert response.status_code in (413, 415, 422)
            assert _error(response, response.status_code)


def test_every_operation_of_ours_is_answered_and_nothing_else_is():
    from serve.protocols.openapi.operations import OPERATIONS
    from serve.routes import HANDLERS

    assert {one.name for one in OPERATIONS if one.ours} == set(HANDLERS)
