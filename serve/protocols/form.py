"""The multipart form of POST /predict: parsed in memory, within limits, refused in a sentence.

BentoML's own reader of file fields fetches any URL that is sent as text in place of a file, answers 500 to most
mistakes, and limits nothing (BentoML 1.4.39: `_bentoml_impl.serde.MultipartSerde`), so the form is read here. The whole
body is in memory already, within the server's limits: nothing is written to disk, and a full disk fails no request.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

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


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One request: at least one image, and the model that shall answer."""

    pictures: tuple[Picture, ...]
    model: str | None
    """None for the default model."""


@dataclass(slots=True)
class _Part:
    disposition: bytes = b""
    content: list[bytes] | None = None

    def options(self) -> tuple[str, str | None]:
        """Name of the field and, if it is a file, the file's name."""
        _, options = parse_options_header(self.disposition)
        name, file = options.get(b"name", b""), options.get(b"filename")
        return name.decode("utf-8", "replace"), None if file is None else file.decode("utf-8", "replace")


def read_form(content_type: bytes, body: bytes, settings: Settings) -> Upload:
    """Read a request's body as the form of POST /predict.

    Raises:
        Refused: not a multipart form (415), too many images or too large a one (413).
        UsageError: a broken form, an unknown or missing field, or text where a file belongs.
    """
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        got = media_type.decode("latin-1") or "no type"
        raise Refused(415, f"expected a multipart form, got {got!r:.80}; send one with: {_EXAMPLE}")
    if not (boundary := options.get(b"boundary")):
        raise UsageError(f"the Content-Type names no boundary; send the form with: {_EXAMPLE}")
    return _upload(_parts(boundary, body, most=settings.max_images + 4), settings)


def _parts(boundary: bytes, body: bytes, *, most: int) -> list[_Part]:
    parts: list[_Part] = []
    field: list[bytes] = []
    value: list[bytes] = []
    ended = False

    def begin() -> None:
        if len(parts) >= most:
            raise Refused(413, f"the form has more than {most} parts; send fewer images at once (POCKETZOO_MAX_IMAGES)")
        parts.append(_Part(content=[]))

    def header_end() -> None:
        if b"".join(field).lower() == b"content-disposition":
            parts[-1].disposition = b"".join(value)
        field.clear()
        value.clear()

    def end() -> None:
        nonlocal ended
        ended = True

    def data(chunk: bytes, start: int, stop: int) -> None:
        content = parts[-1].content
        assert content is not None
        content.append(chunk[start:stop])

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_part_data": data,
                "on_header_field": lambda chunk, start, stop: field.append(chunk[start:stop]),
                "on_header_value": lambda chunk, start, stop: value.append(chunk[start:stop]),
                "on_header_end": header_end,
                "on_end": end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise UsageError(f"cannot read the form: {error}") from error
    if not ended:
        raise UsageError("the form ends before its closing boundary; the upload was cut off")
    return parts


def _upload(parts: list[_Part], settings: Settings) -> Upload:
    pictures: list[Picture] = []
    models: list[str | None] = []
    for part in parts:
        name, file = part.options()
        content = b"".join(part.content or ())
        if name not in (*_IMAGES, _MODEL):
            raise unknown_name("form field", name[:80], (*_IMAGES, _MODEL))
        if name == _MODEL:
            models.append(_model(content, file))
            continue
        if file is None:
            raise UsageError(f"form field `{name}`: expected a file, got text (no address is fetched); try: {_EXAMPLE}")
        if len(content) > settings.max_image_bytes:
            raise Refused(
                413,
                f"image {file!r:.80} has {len(content)} bytes, "
                f"at most {settings.max_image_bytes} are accepted (POCKETZOO_MAX_IMAGE_BYTES)",
            )
        pictures.append((file, content))
    if not pictures:
        raise UsageError(f"no image: expected one or more files in the form field `images`; send one with: {_EXAMPLE}")
    if len(pictures) > settings.max_images:
        raise Refused(413, f"{len(pictures)} images, at most {settings.max_images} at once (POCKETZOO_MAX_IMAGES)")
    if len(models) > 1:
        raise UsageError(f"form field `model`: expected one name, got {len(models)}")
    return Upload(pictures=tuple(pictures), model=models[0] if models else None)


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
