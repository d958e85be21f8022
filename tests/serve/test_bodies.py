"""Who has the memory for bodies when others stall."""

import asyncio

import pytest

import serve.bodies
from serve.bodies import AtMost, Bodies
from serve.protocols.http import Refused
from serve.settings import Settings
from tests.serve.test_worker import sent

_MB = 1 << 20


def bodies(most):
    return Bodies(Settings(max_buffered_bytes=most, max_request_bytes=most // 2))


async def stalled(one, *, bytes_each, count):
    """`count` uploads that have sent so much and then nothing."""
    calls = [sent(bytes(bytes_each), 60.0, b"", length=2 * bytes_each) for _ in range(count)]
    tasks = [asyncio.ensure_future(one.read(call, 9 * bytes_each)) for call in calls]
    await asyncio.sleep(0)
    return tasks


def end(task):
    """The status and sentence that an upload ended with."""
    with pytest.raises(Refused) as refused:
        task.result()
    return refused.value.status, str(refused.value)


@pytest.mark.parametrize("gap", [0.03, 0.011])
def test_a_body_that_stalls_gets_408_and_one_that_goes_on_is_read(monkeypatch, gap):
    monkeypatch.setattr(serve.bodies, "_WINDOW_SECONDS", 0.05)
    monkeypatch.setattr(serve.bodies, "_WINDOW_BYTES", 100)

    async def ask():
        one = bodies(8 * _MB)
        pieces = [part for _ in range(6) for part in (bytes(120), gap)]
        drops = [part for _ in range(6) for part in (b"x", gap)]
        going, dripping = (asyncio.ensure_future(one.read(sent(*each, b""), _MB)) for each in (pieces, drops))
        await asyncio.wait([going, dripping])
        assert len(going.result()) == 720
        return end(dripping)

    status, sentence = asyncio.run(ask())
    assert status == 408
    assert "the body stalled after" in sentence


def test_small_bodies_have_room_whatever_large_ones_hold(monkeypatch):
    monkeypatch.setattr(serve.bodies, "_PATIENCE_SECONDS", 0.0)

    async def ask():
        one = bodies(16 * _MB)
        tasks = await stalled(one, bytes_each=4 * _MB, count=4)
        assert one.held == 12 * _MB  # three quarters
        await asyncio.wait([tasks[3]])
        assert end(tasks[3])[0] == 503
        for _ in range(4):
            assert len(await one.read(sent(bytes(_MB), length=_MB), _MB)) == _MB
        with pytest.raises(Refused, match="MAX_BUFFERED_BYTES"):
            await one.read(sent(b"x", length=1), _MB)
        for task in tasks:
            task.cancel()

    asyncio.run(ask())


def test_a_body_waits_until_those_that_stall_can_be_told_from_others(monkeypatch):
    monkeypatch.setattr(serve.bodies, "_STALLED_SECONDS", 0.05)

    async def ask():
        one = bodies(4 * _MB)
        tasks = await stalled(one, bytes_each=_MB // 2, count=8)
        honest = [one.read(sent(bytes(_MB // 4), bytes(_MB // 4), length=_MB // 2), _MB) for _ in range(6)]
        # They stall in the order in which they came, and those that wait are not taken for stalled.
        assert [len(body) for body in await asyncio.gather(*honest)] == 6 * [_MB // 2]
        return [end(task)[0] for task in tasks if task.done()]

    assert asyncio.run(ask()) == 6 * [408]


def test_of_many_that_wait_for_memory_one_looks_for_it(monkeypatch):
    monkeypatch.setattr(serve.bodies, "_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(serve.bodies, "_STALLED_SECONDS", 0.08)

    async def ask():
        one, looks = bodies(4 * _MB), []
        monkeypatch.setattr(one, "_cut_slowest", lambda: looks.append(1))
        tasks = await stalled(one, bytes_each=_MB // 2, count=8)
        late = [asyncio.ensure_future(one.read(sent(bytes(_MB // 2), length=_MB // 2), _MB)) for _ in range(100)]
        await asyncio.wait(late)
        for task in tasks:
            task.cancel()
        return {end(task)[0] for task in late}, len(looks)

    statuses, looks = asyncio.run(ask())
    assert statuses == {503}
    assert looks < 20


@pytest.mark.parametrize("size", [4 * _MB, _MB // 2])
def test_where_memory_is_short_the_one_that_stalls_for_longest_goes_first(monkeypatch, size):
    monkeypatch.setattr(serve.bodies, "_STALLED_SECONDS", 0.0)

    async def ask():
        one = bodies(4 * size)
        tasks = [(await stalled(one, bytes_each=size, count=1))[0] for _ in range(3)]
        await asyncio.sleep(0.001)
        most = one._most_of_large if size > _MB else one._most
        assert one.held == 3 * size
        await one.read(sent(bytes(size), length=size), 9 * size)
        await one.read(sent(bytes(size), length=size), 9 * size)
        await asyncio.sleep(0.001)
        assert one.held <= most
        gone = [task.done() for task in tasks]
        for task in tasks:
            task.cancel()
        return gone, end(tasks[0])

    gone, (status, _) = asyncio.run(ask())
    assert gone == ([True, True, False] if size > _MB else [True, False, False])
    assert status == 408


@pytest.mark.parametrize(("start", "refused"), [(b' {"a": ', True), (b"\xff\xd8", False)])
def test_json_of_too_many_values_is_refused_before_it_has_come(start, refused):
    async def ask():
        call = sent(start, b",,", b",,", 60.0, length=_MB)
        task = asyncio.ensure_future(
            bodies(8 * _MB).read(call, _MB, lambda: AtMost(b",[", 3, lambda seen: f"{seen} values"))
        )
        await asyncio.sleep(0.05)
        if not refused:
            assert not task.done()  # an image's bytes mean nothing
            task.cancel()
            return
        assert end(task) == (413, "4 values")

    asyncio.run(ask())
