import asyncio
import contextlib
import gc
import threading
import time
import weakref

import pytest

from serve.protocols.http import Refused
from serve.queue import Engine, Work
from serve.settings import Settings
from tests.serve.protocols.test_http import call


@pytest.fixture
def make():
    engines: list[Engine] = []

    def _make(**settings) -> Engine:
        engines.append(Engine(Settings(**{"slots": 2, **settings})))
        return engines[-1]

    yield _make
    for engine in engines:
        engine.close()


def test_results_come_in_order_and_only_so_many_run_at_once(make):
    engine, running, most, lock = make(slots=2), 0, 0, threading.Lock()

    def work(number):
        def run(alone):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.002 * (5 - number))
            with lock:
                running -= 1
            return number

        return Work(run)

    async def main():
        return await engine.map(call(), [work(number) for number in range(5)])

    assert asyncio.run(main()) == list(range(5))
    assert most == 2
    assert engine.inside == 0


def test_one_request_alone_has_the_machine_for_itself_and_two_share_it(make):
    engine = make()
    ready = threading.Barrier(2)

    async def main():
        alone = await engine.map(call(), [Work(lambda alone: alone)])

        def shared(alone):
            ready.wait(5)
            return alone

        together = await asyncio.gather(*(engine.map(call(), [Work(shared)]) for _ in range(2)))
        return alone, together

    alone, together = asyncio.run(main())
    assert alone == [True]
    assert [False] in together


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(make):
    engine = make(slots=1, queue=2, queue_seconds=0.0)
    go = threading.Event()

    async def main():
        inside = [asyncio.ensure_future(engine.map(call(), [Work(lambda alone: go.wait(5))])) for _ in range(3)]
        await asyncio.sleep(0.01)
        with pytest.raises(Refused, match="2 images wait") as refused:
            await engine.map(call(), [Work(lambda alone: None)])
        go.set()
        return refused.value, await asyncio.gather(*inside)

    refused, served = asyncio.run(main())
    assert refused.status == 503
    assert refused.retry_after > 0
    assert served == [[True]] * 3
    assert engine.inside == 0


def test_what_will_be_served_in_time_is_admitted_however_long_the_queue(make):
    engine = make(slots=1, queue=1, queue_seconds=60.0)

    async def main():
        return await asyncio.gather(*(engine.map(call(), [Work(lambda alone: 1)]) for _ in range(100)))

    assert asyncio.run(main()) == [[1]] * 100


def test_a_burst_on_a_slow_model_is_served_up_to_the_least_queue(make):
    engine = make(slots=1, queue=40, queue_seconds=0.0)

    async def main():
        return await asyncio.gather(
            *(engine.map(call(), [Work(lambda alone: time.sleep(0.001))]) for _ in range(50)), return_exceptions=True
        )

    done = asyncio.run(main())
    assert sum(result == [None] for result in done) == 41
    assert sum(isinstance(result, Refused) for result in done) == 9


def test_a_request_whose_time_is_up_is_not_begun(make):
    late = call()
    late.started -= 100
    with pytest.raises(Refused) as refused:
        asyncio.run(make().map(late, [Work(lambda alone: pytest.fail("was begun"))]))
    assert refused.value.status == 504


def test_nobody_is_admitted_to_wait_longer_than_his_time(make):
    engine = make(slots=1, timeout_seconds=0.01)

    async def main():
        slow = asyncio.ensure_future(engine.map(call(), [Work(lambda alone: time.sleep(0.02))]))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await engine.map(call(), [Work(lambda alone: None)])
        await slow
        return refused.value.status

    assert asyncio.run(main()) == 503


def test_a_request_whose_client_went_away_is_not_begun(make):
    class Gone:
        disconnected = True

        async def receive(self): ...

    one = call()
    one.receive = Gone().receive
    engine = make()
    with pytest.raises(Refused) as refused:
        asyncio.run(engine.map(one, [Work(lambda alone: pytest.fail("was begun"))]))
    assert refused.value.status == 499


def test_the_first_failure_ends_the_request_and_what_was_not_begun(make):
    engine, begun = make(slots=1), []

    def fail(alone):
        time.sleep(0.01)
        raise ValueError("torn")

    works = [Work(fail), *[Work(lambda alone: begun.append(1))] * 5]
    with pytest.raises(ValueError, match="torn"):
        asyncio.run(engine.map(call(), works))
    assert begun == []
    assert engine.inside == 0


def test_memory_is_tidied_once_nothing_is_computed_after_something_long(monkeypatch):
    tidied = []
    engine = Engine(Settings(slots=2), tidy=lambda: tidied.append(engine.inside))
    monkeypatch.setattr("serve.queue._HEAVY_SECONDS", 0.02)
    asyncio.run(engine.map(call(), [Work(lambda alone: None)]))
    asyncio.run(engine.map(call(), [Work(lambda alone: time.sleep(0.03)), Work(lambda alone: None)]))
    while not tidied:
        time.sleep(0.001)
    engine.close()
    assert tidied == [0]


def test_what_nobody_waits_for_any_more_is_inside_until_its_thread_is_done(make):
    engine, go = make(slots=1), threading.Event()

    async def main():
        task = asyncio.ensure_future(engine.map(call(), [Work(lambda alone: go.wait(5))]))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        computing = engine.inside
        go.set()
        while engine.inside:
            await asyncio.sleep(0.001)
        return computing

    assert asyncio.run(asyncio.wait_for(main(), 5)) == 1


@pytest.mark.parametrize("many", [1, 3])
def test_a_failure_leaves_nothing_for_the_garbage_collector(make, many):
    engine = make()

    class Body:
        """Like the bytes of a body, but that a weak reference can see it go."""

    def fail(body):
        raise ValueError

    async def ask():
        body = Body()
        gone.append(weakref.ref(body))
        await engine.map(call(), [Work(lambda alone: fail(body))] * many)

    async def main():
        with contextlib.suppress(ValueError):
            await ask()
        await asyncio.sleep(0.02)
        return gone[0]() is None

    gone: list = []
    gc.disable()
    try:
        assert asyncio.run(main())
    finally:
        gc.enable()


def test_failures_take_their_time_in_the_estimate(make):
    engine = make(slots=1)

    def fail(alone):
        time.sleep(0.05)
        raise ValueError

    for _ in range(5):
        with pytest.raises(ValueError):
            asyncio.run(engine.map(call(), [Work(fail)]))
    with engine.inside_a_batch(1):
        assert engine.wait_seconds() > 0.025


def test_batches_count_as_waiting_and_set_the_estimate(make):
    engine = make(slots=1)
    for _ in range(200):
        engine.batch_took(4, 2.0)
    with engine.inside_a_batch(3):
        assert engine.inside == 3
        assert engine.wait_seconds() == pytest.approx(3 * 0.5, rel=0.01)
    assert engine.inside == 0


def test_memory_is_given_back_now_and_then_however_often_it_is_taken(monkeypatch):
    monkeypatch.setattr("serve.queue._TIDY_SECONDS", 0.05)
    tidied = []
    engine = Engine(Settings(slots=2), tidy=lambda: tidied.append(time.perf_counter()))

    async def main():
        for _ in range(20):
            engine.took_memory()
        await asyncio.sleep(0.5)

    asyncio.run(main())
    engine.close()
    # At once, and once more for the nineteen others.
    assert len(tidied) == 2
    assert tidied[1] - tidied[0] > 0.04
