"""The multipart form of POST /predict: parsed in memory, within limits, refused in a sentence.

BentoML's own reader of file fields fetches any URL that is sent as text in place of a file, answers 500 to most
mistakes, and limits nothing (BentoML 1.4.39: `_bentoml_impl.serde.MultipartSerde`), so the form is read here. The whole
body is in memory already, within the server's limits, so that it is only cut at its boundaries: reading it piece by
piece, as libraries do, takes longer than decoding a small image.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from serve.bodies import check_images
from serve.protocols.http import Refused
from serve.settings import Settings
from zoo.base.errors import UsageError, unknown_name

__all__ = ["Picture", "Upload", "read_form"]

Picture = tuple[str, bytes]
"""An image's name, for errors, and its file's bytes."""

_IMAGES, _MODEL = ("images", "image", "file"), "model"
"""Names of fields; of the first three, any and any number."""
_EXAMPLE = "curl -F images=@photo.jpg http://localhost:3000/predict"
_MAX_MODEL_BYTES = 4096
_MAX_HEADER_BYTES = 4096

_BOUNDARY = re.compile(rb';[ \t]*boundary=(?:"([^"]{1,200})"|([^;"\s]{1,200}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"\ncontent-disposition:([^\r\n]*)", re.IGNORECASE)
_PARAMETER = re.compile(rb';[ \t]*(name|filename\*?)=(?:"((?:[^"\\]|\\.)*)"|([^;"\s]*))', re.IGNORECASE)
_ESCAPED = re.compile(rb'\\(["\\])')


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One request: at least one image, and the model that shall answer."""

    pictures: tuple[Picture, ...]
    model: str | None
    """None for the default model."""


def read_form(content_type: bytes, body: bytes, settings: Settings) -> Upload:
    """Read a request's body as the form of POST /predict.

    Raises:
        Refused: not a multipart form (415), too many images or too large a one (413).
        UsageError: a broken form, an unknown or missing field, or text where a file belongs.
    """
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type != b"multipart/form-data":
        got = media_type.decode("latin-1") or "no type"
        raise Refused(415, f"expected a multipart form, got {got!r:.80}; send one with: {_EXAMPLE}")
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise UsageError(f"the Content-Type names no boundary; send the form with: {_EXAMPLE}")
    pictures: list[Picture] = []
    models: list[str | None] = []
    for headers, content in _parts(boundary[1] or boundary[2], body, most=settings.max_images + 4):
        name, file = _names(headers)
        if name == _MODEL:
            models.append(_model(content, file))
        elif name not in _IMAGES:
            raise unknown_name("form field", name[:80], (*_IMAGES, _MODEL))
        elif file is None:
            raise UsageError(f"form field `{name}`: expected a file, got text (no address is fetched); try: {_EXAMPLE}")
        else:
            pictures.append((file, content))
    if not pictures:
        raise UsageError(f"no image: expected one or more files in the form field `images`; send one with: {_EXAMPLE}")
    sizes = [len(content) for _, content in pictures]
    check_images(sizes, settings, lambda index: f"image {pictures[index][0]!r:.80}")
    if len(models) > 1:
        raise UsageError(f"form field `model`: expected one name, got {len(models)}")
    return Upload(pictures=tuple(pictures), model=models[0] if models else None)


def _parts(boundary: bytes, body: bytes, *, most: int) -> Iterator[tuple[bytes, bytes]]:
    """Headers and content of each part: RFC 2046, section 5.1.1."""
    delimiter = b"\r\n--" + boundary
    start = -2 if body.startswith(delimiter[2:]) else body.find(delimiter)
    if start == -1:
        raise UsageError(f"cannot read the form: its boundary is not in it; send one with: {_EXAMPLE}")
    at = start + len(delimiter)
    for count in itertools.count():
        if body.startswith(b"--", at):
            return
        end = body.find(delimiter, at)
        if end < 0:
            raise UsageError("the form ends before its closing boundary; the upload was cut off")
        if count >= most:
            raise Refused(413, f"the form has more than {most} parts; send fewer images at once (POCKETZOO_MAX_IMAGES)")
        empty_line = body.find(b"\r\n\r\n", at, end + 2)
        if not 0 <= empty_line <= at + _MAX_HEADER_BYTES or not body.startswith(b"\r\n", at):
            raise UsageError(
                f"cannot read the form: part {count + 1} has no empty line behind at most {_MAX_HEADER_BYTES} bytes of "
                "headers"
            )
        yield body[at:empty_line], body[empty_line + 4 : end]
        at = end + len(delimiter)


def _names(headers: bytes) -> tuple[str, str | None]:
    """Names of the field and, if it is a file, of the file: RFC 7578, section 4.2."""
    found: dict[bytes, str] = {}
    if (disposition := _DISPOSITION.search(headers)) is not None:
        for key, quoted, plain in _PARAMETER.findall(disposition[1]):
            found.setdefault(key.lower(), (_ESCAPED.sub(rb"\1", quoted) or plain).decode("utf-8", "replace"))
    return found.get(b"name", ""), found.get(b"filename", found.get(b"filename*"))


def _model(content: bytes, file: str | None) -> str | None:
    if file is not None:
        raise UsageError("form field `model`: expected a name as text, got a file")
    if len(content) > _MAX_MODEL_BYTES:
        raise UsageError(f"form field `model`: expected a name, got {len(content)} bytes")
    text = content.decode("utf-8", "replace")
    # BentoML's client sends every field that is not a file as JSON: "name" in quotes, or null.
    with contextlib.suppress(ValueError, RecursionError):
        decoded = json.loads(text)
        if decoded is None or isinstance(decoded, str):
            return decoded or None
    return text or None
