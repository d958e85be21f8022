import json

import pytest

from serve.protocols.http import Call, Refused, json_reply, refusal, reply_of_error
from zoo.base.errors import ArtefactError, ImageError, ImageFormatError, ImageSizeError, UsageError


def call(**headers: str) -> Call:
    sent = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return Call(receive=None, method="POST", path="/", headers=sent, request_id="r")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ImageFormatError("x"), 415),
        (ImageSizeError("x"), 413),
        (ImageError("x"), 422),
        (UsageError("x"), 400),
        (ArtefactError("x"), 503),
        (Refused(429, "x"), 429),
    ],
)
def test_every_error_has_a_status_and_a_sentence(error, status):
    reply = reply_of_error(error)
    assert (refusal(error).status, reply.status) == (status, status)
    assert json.loads(reply.body) == {"error": "x"}
    # What is broken now may be mended in a moment.
    assert reply.headers == (((b"retry-after", b"1"),) if status == 503 else ())


@pytest.mark.parametrize(("seconds", "sent"), [(0.0, b"1"), (0.2, b"1"), (2.6, b"3")])
def test_when_to_come_again_is_told_in_whole_seconds(seconds, sent):
    assert reply_of_error(Refused(503, "busy", retry_after=seconds)).headers == ((b"retry-after", sent),)


def test_json_is_compact_utf_8():
    assert json_reply({"label": "Dackel, süß"}).body == '{"label":"Dackel, süß"}'.encode()


@pytest.mark.parametrize(
    ("header", "type_"), [("image/PNG; x=y", "image/png"), ("", ""), (" Image/Jpeg ", "image/jpeg")]
)
def test_the_media_type_has_no_parameters(header, type_):
    assert call(content_type=header).media_type == type_


@pytest.mark.parametrize(("header", "length"), [("12", 12), ("", None), ("-1", None), ("x", None)])
def test_only_a_number_is_a_length(header, length):
    assert call(content_length=header).content_length == length


def test_uvicorn_knows_when_the_client_has_gone():
    class Cycle:
        disconnected = False

        async def receive(self): ...

    cycle = Cycle()
    one = Call(receive=cycle.receive, method="POST", path="/", headers={}, request_id="r")
    assert not one.gone()
    cycle.disconnected = True
    assert one.gone()
    assert not call().gone()
