"""The requests of a comparison: one image, in every way that the server takes it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.load.load_spec import prepare
from serve.protocols.oip.tensors import images_name
from zoo.artefact.card import Card
from zoo.artefact.preprocess import preprocess

__all__ = ["ENDPOINTS", "Endpoint"]

_BOUNDARY = "pocketzoo-load-7MA4YWxkTrZu0gW"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One way in."""

    title: str
    reference: str
    """What it is compared with: `image`, or `tensor` where the client has decoded and preprocessed."""
    build: Callable[[str, Card, bytes], str]
    """Model, its card and an image -> a request for bench.load.load_spec.Job."""


def _raw(model: str, card: Card, image: bytes) -> str:
    return prepare("POST", "/v1/predict", {"Content-Type": "image/jpeg"}, image)


def _form(model: str, card: Card, image: bytes) -> str:
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + image + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return prepare("POST", "/predict", {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, body)


def _tensor(model: str, card: Card, image: bytes) -> str:
    array = np.ascontiguousarray(preprocess(image, card.use.input)[None], dtype="<f4")
    given: dict[str, Any] = {"name": card.use.input.name, "datatype": "FP32", "shape": list(array.shape)}
    return _infer(model, given, array.tobytes())


def _bytes(model: str, card: Card, image: bytes) -> str:
    # An element of datatype BYTES is its length, four bytes with the least significant first, and then itself.
    return _infer(
        model,
        {"name": images_name(card.use.input), "datatype": "BYTES", "shape": [1]},
        struct.pack("<I", len(image)) + image,
    )


def _infer(model: str, given: dict[str, Any], data: bytes) -> str:
    document = {
        "inputs": [given | {"parameters": {"binary_data_size": len(data)}}],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(document).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return prepare("POST", f"/v2/models/{model}/infer", headers, head + data)


ENDPOINTS = {
    "v1": Endpoint(title="POST /v1/predict (raw image)", reference="image", build=_raw),
    "form": Endpoint(title="POST /predict (multipart)", reference="image", build=_form),
    "bytes": Endpoint(title="POST /v2/.../infer (BYTES)", reference="image", build=_bytes),
    "tensor": Endpoint(title="POST /v2/.../infer (FP32)", reference="tensor", build=_tensor),
}
"""By a short name; all of one image."""
