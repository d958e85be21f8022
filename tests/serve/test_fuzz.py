"""Whatever comes, the answer is right, or a sentence with a fitting status; never a crash, and never a 500.

The short form runs in `make test`; POCKETZOO_FUZZ_EXAMPLES=10000 sends that many mutated images and forms, and
generates that many requests from the OpenAPI document.
"""

from __future__ import annotations

import base64
import collections
import copy
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from starlette.testclient import TestClient

from serve.protocols.openapi.document import document
from tests.serve.conftest import BENTOML_WARNINGS, write_artefact
from tests.serve.mutations import FORMATS, bombs, good, mutate

pytestmark = BENTOML_WARNINGS

EXAMPLES = int(os.environ.get("POCKETZOO_FUZZ_EXAMPLES", "400"))
"""Requests of each kind."""

_BOUNDARY = "gR5xQbA"
_REFUSED = {400, 401, 403, 404, 405, 408, 413, 415, 422, 429}


@dataclass
class Server:
    """The application, and how often it answered what."""

    client: TestClient
    version: str
    """Of the model `good`."""
    statuses: collections.Counter[tuple[str, int]] = field(default_factory=collections.Counter)

    def send(self, kind: str, method: str, path: str, **request: Any) -> httpx.Response:
        """Send a request whose answer must be no failure, and count it."""
        response = self.client.request(method, path, **request)
        self.statuses[kind, response.status_code] += 1
        status = response.status_code
        if status >= 400:
            assert status in _REFUSED or (status == 503 and "retry-after" in response.headers), response.text
            assert response.headers["content-type"] == "application/json"
            answer = response.json()
            assert list(answer) == ["error"]
            assert answer["error"]
            assert "Traceback" not in answer["error"]
        return response

    def still_answers(self) -> None:
        """Check that a good image gets a good answer."""
        response = self.client.post("/v1/predict", content=good("PNG"))
        assert response.status_code == 200, response.text
        assert response.json()["predictions"][0]["label"] in {"cat", "dog", "fox"}

    def of(self, kind: str) -> dict[int, int]:
        """Status -> how often."""
        return {status: count for (name, status), count in sorted(self.statuses.items()) if name == kind}


@pytest.fixture(scope="module")
def server(request, tmp_path_factory) -> Iterator[Server]:
    from serve.service import Classifier

    root = tmp_path_factory.mktemp("fuzzed")
    write_artefact(root / "models" / "good" / "model.onnx", seed=1, top1=0.9)
    write_artefact(root / "models" / "other" / "model.onnx", seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETZOO_MODELS", str(root / "models"))
        patch.setenv("POCKETZOO_THREADS", "1")
        patch.setenv("POCKETZOO_MAX_PIXELS", "1000000")
        patch.setenv("POCKETZOO_MAX_IMAGE_BYTES", "100000")
        patch.setenv("POCKETZOO_MAX_REQUEST_BYTES", "300000")
        patch.setenv("POCKETZOO_LOG", "off")
        with TestClient(Classifier.to_asgi(), raise_server_exceptions=False) as client:
            found = Server(client=client, version=client.get("/models").json()["models"][0]["version"])
            yield found
    if "POCKETZOO_FUZZ_EXAMPLES" in os.environ:
        with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
            for kind in sorted({kind for kind, _ in found.statuses}):
                print(f"\nfuzz: {kind}: {found.of(kind)}", end="")


def _form(*images: bytes, extra: bytes = b"") -> bytes:
    parts = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="{index}.png"\r\n\r\n'.encode()
        + image
        for index, image in enumerate(images)
    ]
    return b"\r\n".join([*parts, extra + f"--{_BOUNDARY}--\r\n".encode()])


def _post_form(server: Server, kind: str, body: bytes) -> httpx.Response:
    media_type = f"multipart/form-data; boundary={_BOUNDARY}"
    return server.send(kind, "POST", "/predict", content=body, headers={"Content-Type": media_type})


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_answered_as_it_is(server, form):
    assert server.send("good", "POST", "/v1/predict", content=good(form)).status_code == 200
    assert _post_form(server, "good", _form(good(form), good(form, 1))).status_code == 200


def test_mutated_images_as_the_body(server):
    for seed in range(EXAMPLES):
        media_type = random.Random(seed).choice(("image/jpeg", "image/png", "application/octet-stream", "image/x"))
        server.send("raw", "POST", "/v1/predict", content=mutate(seed), headers={"Content-Type": media_type})
    found = server.of("raw")
    assert sum(found.values()) == EXAMPLES
    assert {200, 413, 415, 422} <= set(found) <= {200, 413, 415, 422, 503}
    server.still_answers()


def test_mutated_images_in_a_form(server):
    for seed in range(EXAMPLES, 2 * EXAMPLES):
        images = [mutate(seed), good("PNG")] if seed % 4 == 0 else [mutate(seed)]
        _post_form(server, "form", _form(*images))
    found = server.of("form")
    assert sum(found.values()) == EXAMPLES
    assert {200, 413, 415, 422} <= set(found) <= {200, 413, 415, 422, 503}
    server.still_answers()


def test_mutated_forms(server):
    extra = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\n"good"\r\n'.encode()
    whole = _form(good("PNG"), extra=extra)
    assert _post_form(server, "good", whole).status_code == 200
    header = len(whole) - len(extra) - len(good("PNG"))
    for seed in range(EXAMPLES):
        rng = random.Random(seed)
        # Above all around the headers of parts: the image's bytes have their own tests.
        at = rng.choice((rng.randrange(header), len(whole) - rng.randrange(len(extra)), rng.randrange(len(whole))))
        length, new = rng.choice((0, 1, 4, 40)), rng.choice((b"", b"\r\n", b"\0", b"--", b'"', rng.randbytes(5)))
        _post_form(server, "broken form", whole[:at] + new + whole[at + length :])
    found = server.of("broken form")
    assert sum(found.values()) == EXAMPLES
    assert 400 in found
    server.still_answers()


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_before_they_unfold(server, name):
    data = bombs()[name]
    raw = server.send("bomb", "POST", "/v1/predict", content=data)
    form = _post_form(server, "bomb", _form(data))
    # A zlib stream that is longer than its pixels is cut off at their end.
    expected = {200} if "more data" in name else {413, 415, 422}
    assert raw.status_code == form.status_code
    assert raw.status_code in expected
    server.still_answers()


@pytest.mark.parametrize(
    "text", ["[" * 4000, '"\\ud800"', "\0", "9" * 4000, "../good", "a" * 4096, "{}", "null", "NaN"]
)
def test_odd_names_of_models(server, text):
    extra = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{text}\r\n'.encode()
    response = _post_form(server, "odd model", _form(good("PNG"), extra=extra))
    assert response.status_code == (200 if text == "null" else 404) or response.status_code == 400
    server.still_answers()


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "-1"},
        {"Content-Length": "9" * 30},
        {"Content-Length": "\u00b2"},
        {"Content-Type": "multipart/form-data"},
        {"Content-Type": "multipart/form-data; boundary=" + "x" * 5000},
        {"Content-Type": "application/vnd.bentoml+pickle"},
        {"Content-Type": "\xff\xfe; \x80"},
        {"X-Request-Id": "\xff" * 500},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-00"},
        {"traceparent": "\xff"},
        {"Authorization": "Bearer " + "\xff" * 300},
        {"x-pocketzoo-split": "\xff;drop"},
        {"Content-Encoding": "gzip"},
        {"Expect": "100-continue"},
        {"Inference-Header-Content-Length": "9" * 400},
    ],
    ids=str,
)
def test_odd_headers(server, headers):
    encoded = {name.encode("latin-1"): value.encode("latin-1") for name, value in headers.items()}
    for path in (
        "/predict",
        "/v1/predict",
        "/v2/models/good/infer",
        "/models",
        "/admin/reload",
        "/v2/repository/index",
    ):
        for method in ("GET", "POST"):
            server.send("odd header", method, path, content=good("PNG"), headers=encoded)
    server.still_answers()


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_odd_methods_and_paths(server, method):
    for path in (
        "/predict",
        "/v1/predict",
        "/v1/models/good:predict",
        "/v1/models/%00:predict",
        "/v1/models/%ff%fe:predict",
        "/v1/models/..%2f..%2fetc:predict",
        "/v1/models/good/versions/%2e%2e:predict",
        "/v1/models/:predict",
        "/v1/models/" + "a" * 4000 + ":predict",
        "/v2/models//infer",
        "/v2/models/good/versions//infer",
        "/v2/nothing",
        "/admin",
        "/admin/",
        "/admin/nothing",
        "/admin/models/good:rollback",
        "/admin/models/nothing:unpin",
        "/%",
        "/nothing",
    ):
        response = server.client.request(method, path)
        server.statuses["odd path", response.status_code] += 1
        assert response.status_code in _REFUSED, (path, response.text)
        assert ("allow" in response.headers) == (response.status_code == 405), (path, response.headers)
    server.still_answers()


_SCALARS: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**63,
    1e308,
    float("nan"),
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    "BYTES",
    "FP32",
)


def _spoil(rng: random.Random, node: Any) -> Any:
    """`node` with one value somewhere inside replaced, or one key taken away or doubled under another name."""
    if isinstance(node, dict) and node and rng.random() < 0.9:
        key = rng.choice(list(node))
        if rng.random() < 0.2:
            return {name: value for name, value in node.items() if name != key}
        if rng.random() < 0.1:
            return node | {key + "_": node[key]}
        return node | {key: _spoil(rng, node[key])}
    if isinstance(node, list) and node and rng.random() < 0.8:
        at = rng.randrange(len(node))
        return [*node[:at], _spoil(rng, node[at]), *node[at + 1 :]]
    return rng.choice(_SCALARS)


def test_spoilt_tensors(server):
    images = base64.b64encode(good("PNG")).decode()
    whole: tuple[dict[str, Any], ...] = (
        {
            "id": "1",
            "parameters": {"binary_data_output": False},
            "inputs": [{"name": "image", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.5] * 192}],
            "outputs": [{"name": "logits", "parameters": {"classification": 2}}],
        },
        {"inputs": [{"name": "image_bytes", "shape": [2], "datatype": "BYTES", "data": [images, images]}]},
    )
    for body in whole:
        assert server.send("good", "POST", "/v2/models/good/infer", json=body).status_code == 200
    for seed in range(EXAMPLES):
        rng = random.Random(seed)
        spoilt = copy.deepcopy(rng.choice(whole))
        for _ in range(rng.randint(1, 3)):
            spoilt = _spoil(rng, spoilt)
        text = json.dumps(spoilt).encode()
        if rng.random() < 0.1:
            text = text[: rng.randrange(len(text))]
        server.send(
            "tensor", "POST", "/v2/models/good/infer", content=text, headers={"Content-Type": "application/json"}
        )
    found = server.of("tensor")
    assert sum(found.values()) == EXAMPLES
    assert {200, 400, 422} <= set(found)
    server.still_answers()


@pytest.mark.parametrize("path", ["/v2/models/good/infer", "/v2/repository/index"])
@pytest.mark.parametrize("text", ["[" * 4000, '{"a":' * 1500, "1" * 4096, '"', "\0", "NaN", "\xff"])
def test_documents_that_break_parsers(server, path, text):
    headers = {"Content-Type": "application/json"}
    server.send("odd document", "POST", path, content=text.encode("latin-1"), headers=headers)
    server.still_answers()


_VERSION = "version-of-good"
"""Stands for the version of the model, which is known when there is one."""


def _loaded() -> tuple[dict[str, Any], Any]:
    described = document(["good", "other"])
    # Random text names no model: half of the requests shall reach one.
    described["components"]["parameters"]["name"]["schema"] = {"enum": ["good", "nothing"]}
    described["components"]["parameters"]["version"]["schema"] = {"enum": [_VERSION, "0123456789ab"]}
    return described, schemathesis.openapi.from_dict(described)


_DESCRIBED, _SCHEMA = _loaded()
_OPERATIONS = {entry.ok().label: entry.ok() for entry in _SCHEMA.get_all_operations()}
_STRUCTURED = {"application/json", "multipart/form-data"}


def _modes(label: str) -> list[GenerationMode]:
    """Wrong values can be made only where the document says what is right about a body."""
    method, path = label.split(" ")
    body = _DESCRIBED["paths"][path][method.lower()].get("requestBody", {"content": {}})
    return [GenerationMode.POSITIVE] + [GenerationMode.NEGATIVE] * bool(_STRUCTURED & set(body["content"]))


@pytest.mark.parametrize(("label", "mode"), [(label, mode) for label in _OPERATIONS for mode in _modes(label)])
def test_the_document_is_true(server, label, mode):
    method, path = label.split(" ")
    responses = _DESCRIBED["paths"][path][method.lower()]["responses"]

    @settings(
        max_examples=max(4, EXAMPLES // 40),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        derandomize=True,
    )
    @given(_OPERATIONS[label].as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        known = ("method", "url", "headers", "files", "data", "json", "params", "cookies")
        values = case.as_transport_kwargs(base_url="http://testserver")
        prepared = requests.Request(**{name: values[name] for name in known if name in values}).prepare()
        url, headers = prepared.url.replace(_VERSION, server.version), dict(prepared.headers)
        if path in {"/readyz", "/livez", "/healthz", "/metrics"}:
            response = server.client.request(prepared.method, url)
            server.statuses["document", response.status_code] += 1
        else:
            response = server.send("document", prepared.method, url, content=prepared.body or b"", headers=headers)
        described = responses[str(response.status_code)]
        if "$ref" in described:
            described = _DESCRIBED["components"]["responses"][described["$ref"].rpartition("/")[2]]
        media_type = response.headers["content-type"].partition(";")[0]
        schema = described["content"][media_type]["schema"]
        if media_type == "application/json":
            jsonschema_rs.validator_for(schema | {"components": _DESCRIBED["components"]}).validate(response.json())

    check()
    server.still_answers()
