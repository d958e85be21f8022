"""The form of POST /predict: read within limits, refused in a sentence.

BentoML's own reader of file fields fetches any URL that is sent as text in place of a file, answers 500 to most
mistakes, and limits nothing (BentoML 1.4.39: `_bentoml_impl.serde.MultipartSerde`), so the form is read here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from serve.settings import Settings
from zoo.errors import UsageError, unknown_name

__all__ = ["Upload", "read_form"]

_IMAGES, _MODEL = "images", "model"
_EXAMPLE = "curl -F images=@photo.jpg http://localhost:3000/predict"
_MAX_MODEL_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One request: at least one image, and the model that shall answer."""

    images: tuple[UploadFile, ...]
    """Open files, in memory or (above 1 MiB) on disk; closed when the request is done."""
    model: str | None
    """None for the default model."""


@contextlib.asynccontextmanager
async def read_form(request: Request, settings: Settings) -> AsyncIterator[Upload]:
    """Read the request's body; its files stay open inside the `async with`.

    Raises:
        UsageError: not a multipart form, an unknown or missing field, text where a file belongs, or too large.
    """
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        raise UsageError(f"expected a multipart form, got {media_type or 'no type'!r:.80}; send one with: {_EXAMPLE}")
    limited = Request(request.scope, _limit(request.receive, settings.max_request_bytes))
    try:
        form = await limited.form(max_files=settings.max_images, max_fields=4, max_part_size=_MAX_MODEL_BYTES)
    except HTTPException as error:
        raise UsageError(f"cannot read the form: {error.detail}") from error
    except MultiPartException as error:
        raise UsageError(f"cannot read the form: {error.message}") from error
    except ClientDisconnect as error:
        raise UsageError("the client closed the connection before its request was complete") from error
    try:
        yield _upload(form, settings)
    finally:
        await form.close()


def _limit(receive: Receive, max_bytes: int) -> Receive:
    total = 0

    async def limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > max_bytes:
            raise UsageError(
                f"the request has more than {max_bytes} bytes (POCKETZOO_MAX_REQUEST_BYTES); send fewer images at once"
            )
        return message

    return limited


def _upload(form: FormData, settings: Settings) -> Upload:
    for name in form:
        if name not in (_IMAGES, _MODEL):
            raise unknown_name("form field", name[:80], (_IMAGES, _MODEL))
    images: list[UploadFile] = []
    for value in form.getlist(_IMAGES):
        if not isinstance(value, UploadFile):
            raise UsageError(f"form field `images`: expected a file, got text (no address is fetched); try: {_EXAMPLE}")
        if (value.size or 0) > settings.max_image_bytes:
            raise UsageError(
                f"image {value.filename or ''!r:.80} has {value.size} bytes, "
                f"at most {settings.max_image_bytes} are accepted (POCKETZOO_MAX_IMAGE_BYTES)"
            )
        images.append(value)
    if not images:
        raise UsageError(f"no image: expected one or more files in the form field `images`; send one with: {_EXAMPLE}")
    return Upload(images=tuple(images), model=_model(form))


def _model(form: FormData) -> str | None:
    values = form.getlist(_MODEL)
    if len(values) > 1:
        raise UsageError(f"form field `model`: expected one name, got {len(values)}")
    if not values:
        return None
    (value,) = values
    if not isinstance(value, str):
        raise UsageError("form field `model`: expected a name as text, got a file")
    # BentoML's client sends every field that is not a file as JSON: "name" in quotes, or null.
    with contextlib.suppress(ValueError):
        decoded = json.loads(value)
        if decoded is None or isinstance(decoded, str):
            return decoded or None
    return value or None
