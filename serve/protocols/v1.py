"""KServe's V1 protocol: image files as base64 text in JSON, which its own clients and TensorFlow Serving's send.

Source: kserve.github.io/website, "V1 Protocol"; binary values are objects `{"b64": text}` (tensorflow.org/tfx/serving,
"RESTful API").
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serve.bodies import AtMost, check_images
from serve.protocols.form import Picture
from serve.protocols.http import Refused
from serve.settings import Settings

__all__ = ["PredictRequest", "at_most", "read_instances"]

_CHARACTERS = b'{"'
_OF_AN_IMAGE = 16
"""Braces and quotes: eight for the image, as many for what a client adds. Base64 has none."""
_SPARE = 128


class Encoded(msgspec.Struct, frozen=True):
    """Bytes as JSON has them."""

    b64: Annotated[bytes, Meta(description="an image file in base64")]


class Instance(msgspec.Struct, frozen=True):
    """One image, as one of the two."""

    image_bytes: Encoded | UnsetType = UNSET
    b64: Annotated[bytes, Meta(description="an image file in base64")] | UnsetType = UNSET


class PredictRequest(msgspec.Struct, frozen=True):
    """The body of POST /v1/models/{name}:predict as JSON; what else is in it is ignored."""

    instances: Annotated[list[Instance], Meta(min_length=1, description="one per image")]


_decode = msgspec.json.Decoder(PredictRequest).decode
_EXAMPLE = '{"instances": [{"image_bytes": {"b64": "..."}}]}'


def at_most(settings: Settings) -> AtMost:
    """What refuses a document that is not worth reading: of more objects and strings than the images need."""
    most = _OF_AN_IMAGE * settings.max_images + _SPARE
    return AtMost(
        _CHARACTERS,
        most,
        lambda seen: (
            f"the JSON has more objects and strings than {settings.max_images} images need, which is how many are "
            f"accepted at once (POCKETZOO_MAX_IMAGES): {seen} braces and quotes or more, at most {most} are read; "
            "send fewer"
        ),
    )


def read_instances(body: bytes, settings: Settings) -> tuple[Picture, ...]:
    """The image files in a body.

    Raises:
        Refused: 400 for what is no such document, 413 for too many images or too large a one.
    """
    try:
        instances = _decode(body).instances
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refused(400, f"expected JSON like {_EXAMPLE}: {str(error)!s:.200}") from error
    pictures = tuple(_picture(one, place) for place, one in enumerate(instances))
    check_images([len(content) for _, content in pictures], settings, lambda index: f"`instances[{index}]`: the image")
    return pictures


def _picture(one: Instance, place: int) -> Picture:
    found = one.b64 if one.image_bytes is UNSET else one.image_bytes.b64
    if found is UNSET or (one.b64 is not UNSET and one.image_bytes is not UNSET):
        raise Refused(400, f"`instances[{place}]`: expected either `image_bytes` or `b64`, as in {_EXAMPLE}")
    return "", found
