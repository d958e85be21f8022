"""Signals that wait for a safe place."""

from __future__ import annotations

import signal
import threading

import pytest

from zoo.base.interrupt import deferred_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_next_safe_place(number):
    before = signal.getsignal(number)
    reached = False
    with pytest.raises(KeyboardInterrupt), deferred_signals() as stop_if_asked:
        stop_if_asked()
        signal.raise_signal(number)
        reached = True
        stop_if_asked()
    assert reached
    assert signal.getsignal(number) is before


def test_a_second_signal_is_obeyed_at_once():
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one was not obeyed")


def test_other_threads_leave_the_handlers_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with deferred_signals() as stop_if_asked:
            stop_if_asked()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
