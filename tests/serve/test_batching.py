import asyncio

import numpy as np
import pytest

from serve.batching import Batcher, pays
from serve.settings import Settings


def settings(**changes) -> Settings:
    return Settings(**{"batch_size": 4, "batch_window_ms": 20.0, **changes})


def row(value: float):
    return np.full((3, 2, 2), value, dtype=np.float32)


def sums(inputs):
    return inputs.sum(axis=(2, 3))


def test_everybody_gets_his_own_answer_from_batches_of_at_most_the_size():
    sizes = []

    async def main():
        batcher = Batcher(sums, settings(), observe=lambda images, seconds: sizes.append(images))
        return await asyncio.gather(*(batcher.logits(row(value)) for value in range(10)))

    found = asyncio.run(main())
    assert np.array_equal(np.stack(found), [[4 * value] * 3 for value in range(10)])
    assert sizes == [4, 4, 2]


def test_a_lonely_image_waits_for_the_window_only():
    async def main():
        batcher = Batcher(sums, settings(batch_window_ms=0.0))
        return await asyncio.wait_for(batcher.logits(row(1)), 5)

    assert np.array_equal(asyncio.run(main()), [4, 4, 4])


def test_a_failing_batch_fails_its_requests_and_not_the_next():
    def run(inputs):
        if inputs.max() > 5:
            raise ValueError("too bright")
        return sums(inputs)

    async def main():
        batcher = Batcher(run, settings(batch_window_ms=0.0))
        with pytest.raises(ValueError, match="too bright"):
            await batcher.logits(row(9))
        return await batcher.logits(row(1))

    assert np.array_equal(asyncio.run(main()), [4, 4, 4])


def test_a_cancelled_request_leaves_the_batch():
    seen = []

    def run(inputs):
        seen.append(len(inputs))
        return sums(inputs)

    async def main():
        batcher = Batcher(run, settings())
        tasks = [asyncio.ensure_future(batcher.logits(row(value))) for value in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, third = asyncio.run(main())
    assert (first[0], third[0]) == (0, 8)
    assert isinstance(second, asyncio.CancelledError)
    assert seen == [2]


def test_it_is_on_or_off_where_the_user_says_so_and_measured_nowhere_else_but_on_gpus_and_many_cores(monkeypatch):
    def unused(inputs):
        pytest.fail("measured")

    for batch, expected in (("on", True), ("off", False)):
        assert pays(unused, unused, (3, 2, 2), settings(batch=batch), gpu=True) is expected
    monkeypatch.setattr("serve.batching.cores", lambda: 2)
    assert pays(unused, unused, (3, 2, 2), settings(), gpu=False) is False


@pytest.mark.parametrize(("per_call", "per_image", "expected"), [(0.01, 0.0, True), (0.0, 0.001, False)])
def test_a_gpu_batches_where_a_call_costs_more_than_an_image(per_call, per_image, expected, monkeypatch):
    seconds = 0.0

    def run(inputs):
        nonlocal seconds
        seconds += per_call + per_image * len(inputs)
        return sums(inputs)

    monkeypatch.setattr("serve.batching.time.perf_counter", lambda: seconds)
    assert pays(run, run, (3, 2, 2), settings(), gpu=True) is expected
