"""The transport, in this process: what a client gets for what it sends."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from tests.serve.conftest import BENTOML_WARNINGS
from zoo.files import sha256_file
from zoo.predictor import Predictor

pytestmark = BENTOML_WARNINGS


@pytest.fixture(scope="module")
def client(output):
    from serve.service import Classifier

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETZOO_OUTPUT", str(output))
        patch.setenv("POCKETZOO_THREADS", "1")
        patch.setenv("POCKETZOO_MAX_IMAGES", "9")
        patch.setenv("POCKETZOO_MAX_IMAGE_BYTES", "200000")
        patch.setenv("POCKETZOO_MAX_REQUEST_BYTES", "500000")
        patch.setenv("POCKETZOO_MAX_PIXELS", "1000000")
        with TestClient(Classifier.to_asgi()) as client:
            yield client


def _post(client, *images: bytes, **data: str):
    return client.post("/predict", files=[("images", (f"{i}.png", image)) for i, image in enumerate(images)], data=data)


def _error(response, status=400) -> str:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
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
        "accuracy": {"dataset": "d", "split": "validation", "n": 9, "top1": 0.9},
        "loaded": True,
        "error": None,
    }
    assert models["torn"]["error"].startswith("torn/model.onnx: not a readable ONNX file")
    assert models["torn"]["classes"] is None


def test_ready_documented_and_described_for_bentoml_s_client(client):
    assert client.get("/readyz").status_code == 200
    assert client.get("/").status_code == 200
    schemas = client.get("/docs.json").json()["components"]["schemas"]
    assert "probabilities" in json.dumps(schemas["ImagePrediction"])
    (route,) = client.get("/schema.json").json()["routes"]
    assert route["route"] == "/predict"
    assert route["input"]["properties"]["images"]["items"] == {"format": "binary", "type": "file"}
    assert route["input"]["required"] == ["images"]


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (b"", "the image is empty"),
        (b"hello", "not an image in a supported format"),
        (_jpeg()[:-400], "cannot decode the image: image file is truncated"),
        (b"x" * 200_001, "200001 bytes, at most 200000 are accepted"),
    ],
)
def test_a_bad_image_is_refused_by_name(client, image, sentence):
    error = _error(_post(client, image))
    assert sentence in error
    assert "'0.png'" in error


def test_the_bad_image_of_several_is_named(client, draw):
    assert _error(_post(client, draw(0), b"hello", draw(1))).startswith(
        "image 2 of 3, '1.png': cannot decode the image"
    )


def test_too_many_pixels_are_refused_from_the_header(client):
    stream = io.BytesIO()
    Image.new("L", (5000, 5000)).save(stream, "PNG")
    assert "5000 x 5000 pixels, at most 1000000" in _error(_post(client, stream.getvalue()))


@pytest.mark.parametrize("content_type", ["image/jpg", "image/jpeg", "application/octet-stream", "text/plain"])
def test_the_declared_type_of_an_image_does_not_matter(client, content_type):
    response = client.post("/predict", files={"images": ("a.jpg", _jpeg(), content_type)})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "text", ["http://127.0.0.1:9/a.png", "https://example.org/a.png", "file:///etc/passwd", "cat.jpg"]
)
def test_text_in_place_of_a_file_is_refused_and_never_fetched(client, text, monkeypatch):
    monkeypatch.setattr("httpx.AsyncClient.send", lambda *_, **__: pytest.fail("fetched"))
    error = _error(client.post("/predict", files={"images": (None, text)}))
    assert "expected a file, got text" in error


def test_json_and_other_bodies_are_refused(client):
    for body in ({"json": {"images": ["http://127.0.0.1:9/"]}}, {"data": {"images": "http://127.0.0.1:9/"}}, {}):
        assert "expected a multipart form" in _error(client.post("/predict", **body))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"garbage", "Invalid multipart data"),
        (b'--q\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\nabc', "no image"),
        (b"--q\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--q--\r\n", "cannot read the form"),
    ],
)
def test_a_malformed_form_is_refused(client, body, sentence):
    headers = {"Content-Type": "multipart/form-data; boundary=q"}
    assert sentence in _error(client.post("/predict", content=body, headers=headers))


def test_fields_that_are_unknown_missing_or_wrong_are_refused(client, draw):
    assert _error(client.post("/predict", files={"image": draw(0)})) == (
        "unknown form field 'image'; did you mean images?"
    )
    assert "no image" in _error(client.post("/predict", files={"model": (None, "good")}))
    files = [("images", draw(0)), ("model", ("a.txt", b"good"))]
    assert "expected a name as text" in _error(client.post("/predict", files=files))
    assert "expected one name, got 2" in _error(_post(client, draw(0), model=["good", "other"]))


def test_too_much_is_refused(client, draw):
    assert "Maximum number of files is 9" in _error(_post(client, *[draw(0)] * 10))
    assert "more than 500000 bytes" in _error(_post(client, *[b"x" * 190_000] * 3))


def test_an_unknown_model_is_refused_and_a_broken_one_is_unavailable(client, draw):
    assert _error(_post(client, draw(0), model="othre")).startswith("unknown model 'othre'; did you mean other")
    assert "golden self-check failed" in _error(_post(client, draw(0), model="liar"), 503)
    assert "not a readable ONNX file" in _error(_post(client, draw(0), model="torn"), 503)


def test_a_slow_inference_does_not_keep_others_waiting(client, draw, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    compute = Predictor.probabilities

    def slow(predictor, images):
        begun.set()
        assert go_on.wait(30)
        return compute(predictor, images)

    monkeypatch.setattr(Predictor, "probabilities", slow)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_post, client, draw(0))
        assert begun.wait(30)
        assert client.get("/livez").status_code == 200
        assert not answer.done()
        go_on.set()
        assert answer.result(30).status_code == 200


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_get_an_answer_or_a_sentence(client, draw, data):
    whole = data.draw(st.sampled_from([b"", draw(0), _jpeg(), _jpeg(progressive=True)]))
    changes = data.draw(st.lists(st.tuples(st.integers(0, max(0, len(whole) - 1)), st.binary(max_size=4)), max_size=4))
    image = whole
    for place, replacement in changes:
        image = image[:place] + replacement + image[place + len(replacement) :]
    image = image[: data.draw(st.integers(0, len(image)))] if data.draw(st.booleans()) else image
    response = _post(client, image)
    if response.status_code != 200:
        assert _error(response)
