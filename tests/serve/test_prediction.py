import threading

import pytest

from serve.prediction import Large, Memory
from serve.protocols.http import Refused
from serve.settings import Settings
from zoo.base.errors import ImageSizeError


def memory(total=100 << 20, **settings):
    return Memory(Settings(**{"slots": 2, "decode_bytes": total, **settings}))


def test_a_slot_takes_what_is_small_and_no_more():
    # Of 100 MiB a quarter is for each of two slots, 50 MiB are left.
    one = memory()
    one.take(25 << 20, "PNG")
    with pytest.raises(Large):
        one.take((25 << 20) + 1, "PNG")
    # Of much memory, a slot has 32 MiB; of two workers, each has half of it.
    for total, workers in ((1 << 30, 1), (2 << 30, 2)):
        memory(total, workers=workers).take(32 << 20, "PNG")
        with pytest.raises(Large):
            memory(total, workers=workers).take((32 << 20) + 1, "PNG")


@pytest.mark.parametrize("count", [(50 << 20) + 1, 5 << 30])
def test_what_never_fits_is_refused_with_its_size_the_limit_and_the_remedy(count):
    wanted = rf"the WEBP image takes up to {count / 1e6:.0f} MB of memory to decode, at most 52 MB are .*; save"
    with pytest.raises(ImageSizeError, match=wanted):
        memory().take(count, "WEBP image")


def test_large_images_wait_for_each_other():
    one, order, first = memory(), [], threading.Event()

    def decode(name, wait):
        with one.large():
            one.take(40 << 20, name)
            order.append(name)
            first.set()
            wait.wait(5)
            order.append(f"{name} done")

    go = threading.Event()
    threads = [threading.Thread(target=decode, args=("a", go))]
    threads[0].start()
    first.wait(5)
    threads.append(threading.Thread(target=decode, args=("b", go)))
    threads[1].start()
    one.take(20 << 20, "small")  # which does not wait for them
    assert order == ["a"]
    go.set()
    for thread in threads:
        thread.join(5)
    assert order == ["a", "a done", "b", "b done"]
    with one.large():
        one.take(50 << 20, "everything is back")


def test_who_waits_too_long_is_refused_and_keeps_nothing():
    one = memory(timeout_seconds=0.01)
    caught = []

    def decode():
        try:
            with one.large():
                one.take(30 << 20, "b")
        except Refused as refused:
            caught.append((refused.status, str(refused)))

    with one.large():
        one.take(30 << 20, "a")
        thread = threading.Thread(target=decode)
        thread.start()
        thread.join(5)
    assert caught == [(503, "other images are being decoded in 52 MB of memory; try again")]
    with one.large():
        one.take(50 << 20, "everything is back")
