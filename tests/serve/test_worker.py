"""What handlers ask of the runtime: bodies within limits, and answers in order."""

import asyncio
import contextlib
import json

import pytest

from serve.protocols.http import Refused
from serve.settings import Settings
from serve.worker import Runtime
from tests.serve.protocols.test_http import call


@contextlib.contextmanager
def runtime(output, **settings):
    made = Runtime(Settings(**{"models": output, "log": "off", "threads": 1, "poll_seconds": 0.0, **settings}))
    try:
        yield made
    finally:
        made.close()


def sent(*messages: bytes | float | None, length: int | None = None):
    """A call whose body comes in these pieces: bytes, a pause in seconds, or None for a client that goes away."""
    waiting = list(messages)

    async def receive():
        piece = waiting.pop(0)
        if isinstance(piece, float):
            await asyncio.sleep(piece)
            piece = waiting.pop(0)
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(waiting)}

    one = call(**({} if length is None else {"content_length": str(length)}))
    one.receive = receive
    return one


@pytest.mark.parametrize("pieces", [(b"abc",), (b"a", b"b", b"c"), (b"", b"abc", b"")])
def test_a_body_is_read_however_it_is_cut(output, pieces):
    with runtime(output) as server:
        one = sent(*pieces)
        assert asyncio.run(server.read(one, 3)) == b"abc"
        assert one.stages["read"] >= 0


@pytest.mark.parametrize(
    ("one", "status"),
    [
        (lambda: sent(b"abcd", length=4), 413),
        (lambda: sent(b"a", b"bcd", b"e"), 413),
        (lambda: sent(b"abcd"), 413),
        (lambda: sent(b"a", None), 499),
        (lambda: sent(None), 499),
    ],
)
def test_a_body_that_is_too_large_or_cut_off_is_refused(output, one, status):
    with runtime(output) as server:
        made = one()
        with pytest.raises(Refused) as refused:
            asyncio.run(server.read(made, 3))
        assert refused.value.status == status
        server.bodies.release(made)
        assert server.bodies.held == 0


def test_all_bodies_together_have_a_limit_and_are_forgotten_when_released(output):
    with runtime(output, max_buffered_bytes=5, max_request_bytes=5) as server:
        first, second, third = sent(b"abc", length=3), sent(b"abc", length=3), sent(b"a", b"b", b"c")
        assert asyncio.run(server.read(first, 9)) == b"abc"
        for one in (second, third):
            with pytest.raises(Refused, match="MAX_BUFFERED_BYTES") as refused:
                asyncio.run(server.read(one, 9))
            assert (refused.value.status, refused.value.retry_after is not None) == (503, True)
            server.bodies.release(one)
        server.bodies.release(first)
        assert asyncio.run(server.read(sent(b"abcde"), 9)) == b"abcde"


def test_a_body_that_was_only_announced_takes_no_room(output):
    async def ask(server):
        silent = [asyncio.ensure_future(server.read(sent(30.0, b"", length=5), 5)) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert server.bodies.held == 0
        assert await server.read(sent(b"abcde", length=5), 5) == b"abcde"
        for task in silent:
            task.cancel()

    with runtime(output, max_buffered_bytes=5, max_request_bytes=5) as server:
        asyncio.run(ask(server))


def test_several_images_are_computed_side_by_side_and_answered_in_order(output, draw):
    images = [draw(seed) for seed in range(12)]

    async def ask(server):
        one_by_one = [(await server.answer(call(), None, None, [("", image)]))["predictions"][0] for image in images]
        together = (await server.answer(call(), None, None, [("", image) for image in images]))["predictions"]
        return one_by_one, together

    with runtime(output) as server:
        one_by_one, together = asyncio.run(ask(server))
    assert json.dumps(together) == json.dumps(one_by_one)
