import asyncio
import base64
import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
import zlib

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as asyncio_triton
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Match
from tritonclient.utils import InferenceServerException

from serve import bodies
from serve.routes import Front
from serve.settings import Settings
from serve.worker import Runtime
from tests.serve.conftest import LABELS
from zoo.artefact.predictor import Predictor
from zoo.artefact.preprocess import batch
from zoo.base.errors import ArtefactError
from zoo.base.files import sha256_file

HEADERS = {"Content-Type": "application/json"}


@contextlib.contextmanager
def serving(app):
    """Serve an ASGI application on a free port of this machine; yields "host:port"."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def runtime(output):
    settings = Settings(models=output, max_images=4, max_request_bytes=2 << 20, log="off", batch="off")
    runtime = Runtime(settings)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def address(runtime):
    with serving(Front(Starlette(), lambda: runtime)) as address:
        yield address


@pytest.fixture(scope="module")
def versions(output):
    return {name: sha256_file(output / name / "model.onnx")[:12] for name in ("good", "other", "liar", "torn")}


@pytest.fixture
def client(address):
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture(scope="module")
def predictor(output):
    return Predictor(output / "good" / "model.onnx", threads=1)


@pytest.fixture
def pixels(predictor, draw):
    return batch([draw(1), draw(2)], predictor.card.use.input)


def tensor(values, *, name="image", datatype="FP32", binary=True):
    found = triton.InferInput(name, list(values.shape), datatype)
    found.set_data_from_numpy(values, binary_data=binary)
    return found


def files(*images):
    return tensor(np.array(images, dtype=np.object_), name="image_bytes", datatype="BYTES")


def request(address, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


def post(address, document, *, path="/v2/models/good/infer", **headers):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    status, _, body = request(address, "POST", path, body, HEADERS | headers)
    return status, json.loads(body)


def test_the_server_is_live_and_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()


def test_a_server_whose_default_model_is_broken_is_live_but_not_ready(address, client, runtime, monkeypatch):
    def refuse(name, version=None):
        raise ArtefactError("torn")

    monkeypatch.setattr(runtime.repository, "get", refuse)
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert request(address, "GET", "/v2/health/ready")[::2] == (503, b'{"ready":false}')


def test_server_metadata(address, client):
    found = client.get_server_metadata()
    assert found["name"] == "pocketzoo"
    assert found["extensions"] == ["binary_tensor_data", "classification"]
    assert json.loads(request(address, "GET", "/v2/")[2]) == found


def test_model_readiness(client, versions):
    assert client.is_model_ready("good")
    assert client.is_model_ready("good", versions["good"])
    assert not client.is_model_ready("liar")
    assert not client.is_model_ready("good", "1")
    assert not client.is_model_ready("absent")


def test_model_metadata(client, versions):
    found = client.get_model_metadata("good")
    assert found == client.get_model_metadata("good", versions["good"])
    assert (found["name"], found["versions"], found["platform"]) == ("good", [versions["good"]], "onnxruntime_onnx")
    described = {part["name"]: (part["datatype"], part["shape"]) for part in found["inputs"] + found["outputs"]}
    assert described == {
        "image": ("FP32", [-1, 3, 8, 8]),
        "image_bytes": ("BYTES", [-1]),
        "probabilities": ("FP32", [-1, 3]),
        "logits": ("FP32", [-1, 3]),
        "label": ("BYTES", [-1]),
    }


def test_the_index_of_the_repository(address, client, versions):
    found = client.get_model_repository_index()
    assert [(entry["name"], entry["state"], not entry["reason"]) for entry in found] == [
        ("good", "READY", True),
        ("liar", "UNAVAILABLE", False),
        ("other", "READY", True),
        ("other-int8", "READY", True),
        ("torn", "UNAVAILABLE", False),
    ]
    assert {entry["name"]: entry["version"] for entry in found if entry["name"] in versions} == versions
    _, ready = post(address, {"ready": True}, path="/v2/repository/index")
    assert ready == [entry for entry in found if entry["state"] == "READY"]
    for body in (b"{", b"[]", b'{"ready":1}', b"[" * 4000):
        assert post(address, body, path="/v2/repository/index")[0] == 400


@pytest.mark.parametrize("binary", [True, False])
def test_pixels_are_answered_with_probabilities_and_labels(client, predictor, pixels, binary):
    found = client.infer("good", [tensor(pixels, binary=binary)], request_id="mine")
    expected = predictor.probabilities(pixels)
    np.testing.assert_allclose(found.as_numpy("probabilities"), expected, rtol=1e-5)
    labels = [LABELS[column].encode() for column in expected.argmax(axis=1)]
    assert found.as_numpy("label").tolist() == labels
    assert found.as_numpy("logits") is None
    assert found.get_response()["id"] == "mine"
    assert found.get_response()["model_name"] == "good"


@pytest.mark.parametrize("binary", [True, False])
def test_outputs_as_binary_and_as_json(client, predictor, pixels, binary):
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("logits", "label")]
    found = client.infer("good", [tensor(pixels)], outputs=outputs)
    np.testing.assert_allclose(found.as_numpy("logits"), predictor.logits(pixels), rtol=1e-5)
    assert found.as_numpy("label").shape == (2,)
    assert ("data" in found.get_output("logits")) is not binary


def test_image_files_are_preprocessed_here(client, predictor, draw, pixels):
    found = client.infer("good", [files(draw(1), draw(2))])
    np.testing.assert_allclose(found.as_numpy("probabilities"), predictor.probabilities(pixels), rtol=1e-5)
    column = tensor(np.array([[draw(1)], [draw(2)]], dtype=np.object_), name="image_bytes", datatype="BYTES")
    again = client.infer("good", [column])
    np.testing.assert_array_equal(again.as_numpy("probabilities"), found.as_numpy("probabilities"))


def test_image_files_as_base64_in_json(address, client, predictor, draw, pixels):
    text = base64.b64encode(draw(1)).decode()
    image = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": [text]}
    status, found = post(address, {"inputs": [image]})
    expected = predictor.probabilities(pixels[:1])
    assert status == 200
    np.testing.assert_allclose([found["outputs"][0]["data"]], expected, rtol=1e-5)
    assert found["outputs"][1]["data"] == [LABELS[int(expected.argmax())]]
    texts = tensor(np.array([text], dtype=np.object_), name="image_bytes", datatype="BYTES", binary=False)
    np.testing.assert_allclose(client.infer("good", [texts]).as_numpy("probabilities"), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["probabilities", "logits"])
@pytest.mark.parametrize("binary", [True, False])
def test_classification(client, predictor, pixels, name, binary):
    outputs = [triton.InferRequestedOutput(name, binary_data=binary, class_count=2)]
    found = client.infer("good", [tensor(pixels)], outputs=outputs).as_numpy(name)
    scores = predictor.probabilities(pixels) if name == "probabilities" else predictor.logits(pixels)
    assert found.shape == (2, 2)
    for texts, row in zip(found, scores, strict=True):
        for text, column in zip(texts, np.argsort(-row), strict=False):
            score, index, label = (text.decode() if binary else text).split(":")
            assert (int(index), label) == (column, LABELS[column])
            assert float(score) == pytest.approx(row[column], abs=1e-5)


def test_more_classes_than_there_are_means_all(client, pixels):
    outputs = [triton.InferRequestedOutput("probabilities", class_count=1000)]
    assert client.infer("good", [tensor(pixels)], outputs=outputs).as_numpy("probabilities").shape == (2, 3)


def test_versions(client, versions, pixels):
    found = client.infer("other", [tensor(pixels)], model_version=versions["other"]).get_response()
    assert (found["model_name"], found["model_version"]) == ("other", versions["other"])
    with pytest.raises(InferenceServerException, match=r"404.*unknown version '1' of 'other'"):
        client.infer("other", [tensor(pixels)], model_version="1")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client, predictor, pixels, runtime, monkeypatch, algorithm):
    held = []

    async def hold(call, count):
        held.append(count)

    monkeypatch.setattr(runtime.bodies, "hold", hold)
    found = client.infer("good", [tensor(pixels)], request_compression_algorithm=algorithm)
    np.testing.assert_allclose(found.as_numpy("probabilities"), predictor.probabilities(pixels), rtol=1e-5)
    assert held[-1] > pixels.nbytes


def test_a_compressed_response_may_be_asked_for_in_vain(client, pixels):
    found = client.infer("good", [tensor(pixels)], response_compression_algorithm="gzip")
    assert found.as_numpy("label").shape == (2,)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_decompression_bomb_is_refused(address, encoding, compress):
    status, found = post(address, compress(bytes(8 << 20)), **{"Content-Encoding": encoding})
    assert status == 413
    assert "more than 2097152 bytes" in found["error"]


def test_asynchronous_requests(client, predictor, pixels):
    waiting = [client.async_infer("good", [tensor(pixels[[index]])]) for index in (0, 1)]
    found = np.concatenate([one.get_result().as_numpy("probabilities") for one in waiting])
    np.testing.assert_allclose(found, predictor.probabilities(pixels), rtol=1e-5)


def test_the_client_of_asyncio(address, predictor, pixels, draw):
    async def ask() -> tuple[bool, list[np.ndarray]]:
        async with asyncio_triton.InferenceServerClient(address) as client:
            ready = await client.is_server_live() and await client.is_model_ready("good")
            found = [await client.infer("good", [one]) for one in (tensor(pixels), files(draw(1), draw(2)))]
            return ready, [each.as_numpy("probabilities") for each in found]

    ready, answers = asyncio.run(ask())
    assert ready
    for answer in answers:
        np.testing.assert_allclose(answer, predictor.probabilities(pixels), rtol=1e-5)


@pytest.mark.parametrize(
    ("status", "sentence", "inputs"),
    [
        (400, "expected 'image' or 'image_bytes', got 'x'", [tensor(np.zeros((1, 3, 8, 8), np.float32), name="x")]),
        (422, "takes FP32, got 'FP64'", [tensor(np.zeros((1, 3, 8, 8)), datatype="FP64")]),
        (422, "takes FP32, got 'FP16'", [tensor(np.zeros((1, 3, 8, 8), np.float16), datatype="FP16")]),
        (422, r"expected \[-1, 3, 8, 8\]", [tensor(np.zeros((1, 8, 8, 3), np.float32))]),
        (413, "5 images, at most 4", [tensor(np.zeros((5, 3, 8, 8), np.float32))]),
        (422, "finite", [tensor(np.full((1, 3, 8, 8), np.nan, np.float32))]),
        (422, "answer is not finite", [tensor(np.full((1, 3, 8, 8), 3e38, np.float32))]),
        (415, "not an image", [files(b"no image")]),
        (400, "`inputs`: expected one tensor", [files(b"a"), tensor(np.zeros((1, 3, 8, 8), np.float32))]),
    ],
)
def test_inputs_that_are_refused(client, status, sentence, inputs):
    with pytest.raises(InferenceServerException, match=sentence) as caught:
        client.infer("good", inputs)
    assert caught.value.status() == str(status)


@pytest.mark.parametrize(
    ("sentence", "wanted"),
    [
        ("unknown output 'logit'; did you mean logits", triton.InferRequestedOutput("logit")),
        ("'label' is a class already", triton.InferRequestedOutput("label", class_count=2)),
        ("classification`: expected `int` >= 1", triton.InferRequestedOutput("logits", class_count=-1)),
    ],
)
def test_outputs_that_are_refused(client, pixels, sentence, wanted):
    with pytest.raises(InferenceServerException, match=f"400.*{sentence}"):
        client.infer("good", [tensor(pixels)], outputs=[wanted])


def test_an_unknown_model_is_refused(client, pixels):
    with pytest.raises(InferenceServerException, match=r"404.*unknown model 'absent'"):
        client.infer("absent", [tensor(pixels)])


def test_what_triton_has_and_this_server_has_not(client):
    for call in (
        lambda: client.load_model("good"),
        lambda: client.unload_model("good"),
        lambda: client.get_inference_statistics("good"),
        lambda: client.get_model_config("good"),
        lambda: client.get_system_shared_memory_status(),
    ):
        with pytest.raises(InferenceServerException, match=r"\[404\] (no such route|unknown model)"):
            call()


def test_another_method_is_refused_and_named(address):
    status, headers, body = request(address, "POST", "/v2/health/live")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert json.loads(body)["error"] == "/v2/health/live: expected GET, got 'POST'"
    status, headers, _ = request(address, "GET", "/v2/models/good/infer")
    assert (status, headers["allow"]) == (405, "POST")
    assert request(address, "HEAD", "/v2/models/good/ready")[::2] == (200, b"")


def test_other_media_types_are_refused(address):
    status, found = post(address, {}, **{"Content-Type": "application/vnd.bentoml+pickle"})
    assert status == 415
    assert "expected application/json" in found["error"]


def test_a_body_for_the_reading_thread(address, draw):
    image = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(draw(1)).decode()]}
    status, found = post(address, {"inputs": [image], "padding": " " * bodies._INLINE_BYTES})
    assert (status, len(found["outputs"])) == (200, 2)
    status, found = post(address, {"inputs": [{"data": []}], "padding": " " * bodies._INLINE_BYTES})
    sentence = "`inputs[0]`: object missing required field `name`; GET /docs shows what is expected"
    assert (status, found["error"]) == (400, sentence)


_OF_VERSION = "/v2/models/{model}/versions/{version}"
_VERSION_1 = {"name": "a", "version": "1"}


@pytest.mark.parametrize(
    ("path", "route", "parts"),
    [
        ("/v2", "/v2", {}),
        ("/v2/", "/v2", {}),
        ("/v2/health/live/", "/v2/health/live", {}),
        ("/v2/models/a", "/v2/models/{model}", {"name": "a"}),
        ("/v2/models/a/model.int8.onnx/infer", "/v2/models/{model}/infer", {"name": "a/model.int8.onnx"}),
        ("/v2/models/a/b/versions/1/ready/", f"{_OF_VERSION}/ready", {"name": "a/b", "version": "1"}),
        ("/v2/models/a/versions/1/infer", f"{_OF_VERSION}/infer", _VERSION_1),
        ("/v2/models/a/", "/v2/models/{model}", {"name": "a"}),
        ("/v2/models/ready", "/v2/models/{model}", {"name": "ready"}),
        ("/v2/models/", "", {}),
        ("/v2/models", "", {}),
        ("/v2/anything", "", {}),
        ("/v1/models/a/b:predict", "/v1/models/{model}:predict", {"name": "a/b"}),
        ("/v1/models/a/versions/1:predict", "/v1/models/{model}/versions/{version}:predict", _VERSION_1),
        ("/v1/models/:predict", "", {}),
        ("/v1/predict/", "", {}),
    ],
)
def test_the_route_of_a_path(runtime, path, route, parts):
    for one in Front(Starlette(), lambda: runtime)._routes(runtime):
        match, scope = one.matches({"type": "http", "path": path, "method": "GET"})
        if match is Match.FULL:
            assert (one.endpoint._route, scope["path_params"]) == (route, parts)
            return
    assert route == ""
