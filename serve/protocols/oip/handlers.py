"""The Open Inference Protocol v2 over HTTP, below /v2: what clients of KServe and Triton speak.

Sources: the protocol's REST specification (github.com/kserve/open-inference-protocol) and three of Triton's extensions
(github.com/triton-inference-server/server, docs/protocol): binary tensor data, classification, and of the model
repository the index.
"""

from __future__ import annotations

import functools
import importlib.metadata
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from serve.bodies import parsed
from serve.protocols.http import Call, Refused, Reply, json_reply
from serve.protocols.oip.request import Asked, IndexRequest, Wanted, at_most, inflate, read_request
from serve.protocols.oip.tensors import Output, images_name, malformed, write_answer
from zoo.artefact.card import Card
from zoo.base.errors import PocketzooError, unknown_name

if TYPE_CHECKING:
    from serve.models.model import Model
    from serve.worker import Runtime

__all__ = ["HANDLERS"]

Array = npt.NDArray[np.float32]

_PROBABILITIES, _LOGITS, _LABEL = "probabilities", "logits", "label"
_OUTPUTS = (_PROBABILITIES, _LOGITS, _LABEL)
_DEFAULT = (_PROBABILITIES, _LABEL)

_MEDIA_TYPES = ("", "application/json", "application/octet-stream", "application/x-www-form-urlencoded")
"""What clients send: a body that goes on with tensors is no JSON, and curl calls everything a form."""


async def _server(runtime: Runtime, call: Call) -> Reply:
    try:
        release = importlib.metadata.version("pocketzoo")
    except importlib.metadata.PackageNotFoundError:  # its files were copied, not installed
        release = "unknown"
    extensions = ["binary_tensor_data", "classification"]
    return json_reply({"name": "pocketzoo", "version": release, "extensions": extensions})


async def _live(runtime: Runtime, call: Call) -> Reply:
    return json_reply({"live": True})


async def _ready(runtime: Runtime, call: Call) -> Reply:
    try:
        ready = runtime.repository.get(None) is not None
    except PocketzooError:
        ready = False
    return json_reply({"ready": ready}, status=200 if ready else 503)


async def _model_ready(runtime: Runtime, call: Call, name: str, version: str | None = None) -> Reply:
    # What is not in memory is ready too, because a request that names it loads it.
    model = await runtime.about(name, version)
    return json_reply({"name": model.name, "ready": True})


async def _metadata(runtime: Runtime, call: Call, name: str, version: str | None = None) -> Reply:
    model = await runtime.about(name, version)
    about = {"name": model.name, "versions": [model.version], "platform": "onnxruntime_onnx"}
    return json_reply({**about, **_tensors(model.card)})


def _tensors(card: Card) -> dict[str, Any]:
    spec, classes = card.use.input, len(card.use.labels)
    images = {"optional": True, "content": "encoded image files; in JSON as base64 text"}
    labels = {"labels": list(card.use.labels)}
    pixels = {"optional": True, "content": f"{spec.colour} pixels, resized, cropped and normalised as the card says"}
    return {
        "inputs": [
            {"name": spec.name, "datatype": "FP32", "shape": [-1, *spec.shape], "parameters": pixels},
            {"name": images_name(spec), "datatype": "BYTES", "shape": [-1], "parameters": images},
        ],
        "outputs": [
            {"name": _PROBABILITIES, "datatype": "FP32", "shape": [-1, classes], "parameters": labels},
            {"name": _LOGITS, "datatype": "FP32", "shape": [-1, classes], "parameters": labels},
            {"name": _LABEL, "datatype": "BYTES", "shape": [-1]},
        ],
    }


_decode_index = msgspec.json.Decoder(IndexRequest).decode


async def _index(runtime: Runtime, call: Call) -> Reply:
    body = await runtime.read(call, 4096)
    try:
        only_ready = _decode_index(body).ready if body.strip() else False
    except (msgspec.DecodeError, RecursionError) as error:
        raise malformed(error) from error
    described = await runtime.describe()
    entries = [_index_entry(model) for model in described["models"]]
    return json_reply([entry for entry in entries if entry["state"] == "READY" or not only_ready])


def _index_entry(model: dict[str, Any]) -> dict[str, str]:
    """What is not in memory is ready too, because a request that names it loads it."""
    state = "UNAVAILABLE" if model["error"] and not model["loaded"] else "READY"
    return {"name": model["name"], "version": model["version"] or "", "state": state, "reason": model["error"] or ""}


async def _infer(runtime: Runtime, call: Call, name: str, version: str | None = None) -> Reply:
    if call.media_type not in _MEDIA_TYPES:
        raise Refused(415, f"expected application/json or application/octet-stream, got {call.media_type!r:.80}")
    model = await runtime.model(call, name, version)
    # With binary data behind the JSON, the reader knows where that ends.
    alone = b"inference-header-content-length" not in call.headers
    json = functools.partial(at_most, model.card.use.input, runtime.settings) if alone else None
    body = await runtime.read(call, runtime.settings.max_request_bytes, json=json)
    request = await _request(runtime, call, model, body)
    wanted = request.outputs or tuple(Wanted(name=output, binary=request.binary) for output in _DEFAULT)
    for output in wanted:
        _check_output(output)
    if isinstance(request.tensor, tuple):
        logits = await runtime.logits_of_images(call, model, [("", image) for image in request.tensor])
    else:
        logits = await runtime.logits(call, model, request.tensor)
    start = time.perf_counter()
    if (probabilities := runtime.probabilities(model, logits)) is None:
        raise Refused(422, "the model's answer is not finite; is the input normalised as the card says?")
    outputs = [_output(one, model.card, logits, probabilities) for one in wanted]
    body, length = write_answer(name=model.name, version=model.version, request_id=request.id, outputs=outputs)
    call.stages["encode"] = (time.perf_counter() - start) * 1e3
    if length is None:
        return Reply(body=body)
    headers = ((b"inference-header-content-length", str(length).encode()),)
    return Reply(body=body, media_type=b"application/octet-stream", headers=headers)


async def _request(runtime: Runtime, call: Call, model: Model, body: bytes) -> Asked:
    length = call.headers.get(b"inference-header-content-length")
    settings, spec = runtime.settings, model.card.use.input
    encoding = call.headers.get(b"content-encoding", b"").strip().lower()
    if encoding not in (b"", b"identity"):
        # However small: it may become large.
        body = await parsed(body, inflate, encoding, settings.max_request_bytes, inline=0)
        await runtime.bodies.hold(call, len(body))
    return await parsed(body, read_request, length, spec, settings)


def _check_output(wanted: Wanted) -> None:
    if wanted.name not in _OUTPUTS:
        raise unknown_name("output", wanted.name[:80], _OUTPUTS)
    if wanted.classes and wanted.name == _LABEL:
        raise Refused(400, f"`classification`: for {_PROBABILITIES!r} and {_LOGITS!r}; {_LABEL!r} is a class already")


def _output(wanted: Wanted, card: Card, logits: Array, probabilities: Array) -> Output:
    labels = card.use.labels
    if wanted.name == _LABEL:
        best = [labels[column] for column in logits.argmax(axis=1)]
        return Output(name=_LABEL, shape=(len(best),), values=best, binary=wanted.binary)
    scores = logits if wanted.name == _LOGITS else probabilities
    if not wanted.classes:
        return Output(name=wanted.name, shape=scores.shape, values=scores, binary=wanted.binary)
    order = np.argsort(-scores, axis=1, kind="stable")[:, : wanted.classes]
    texts = [
        f"{row[column]:.6f}:{column}:{labels[column]}"
        for row, columns in zip(scores, order, strict=True)
        for column in columns
    ]
    return Output(name=wanted.name, shape=order.shape, values=texts, binary=wanted.binary)


HANDLERS: Mapping[str, Callable[..., Awaitable[Reply]]] = {
    "serverMetadata": _server,
    "serverLive": _live,
    "serverReady": _ready,
    "repositoryIndex": _index,
    "modelMetadata": _metadata,
    "modelMetadataVersion": _metadata,
    "modelReady": _model_ready,
    "modelReadyV1": _model_ready,
    "modelReadyVersion": _model_ready,
    "modelInfer": _infer,
    "modelInferVersion": _infer,
}
"""Name of an operation of :mod:`serve.protocols.openapi.operations` -> what answers it."""
