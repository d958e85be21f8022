"""Progress goes to standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io
import types

import pytest

from zoo.base import progress
from zoo.base.progress import Bar, Chain, Ongoing, chain, note, track


def test_what_is_short_is_silent_without_a_terminal(capsys):
    assert list(track(range(3), total=3, description="Working")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_what_is_long_has_a_line_now_and_then_without_a_terminal(capsys, monkeypatch):
    seconds = iter([0.0, *(10.0 * step for step in range(7))])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    assert list(track(iter(range(7)), total=7000, description="Working")) == [*range(7)]
    # The fourth is asked for after 30 seconds, the seventh after 60: 10 seconds each.
    lines = ["Working: 3 of 7,000, 19:26:10 left", "Working: 6 of 7,000, 19:25:40 left"]
    assert capsys.readouterr() == ("", "\n".join(lines) + "\n")


@pytest.fixture
def clock(monkeypatch):
    found = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: found.now)
    return found


def test_what_is_left_of_a_chain(clock):
    steps = Chain([2, 1, 1], 400)
    assert steps.left() is None
    steps.begin()
    assert steps.left() == 400
    clock.now = 150
    assert steps.left() == 250
    clock.now = 300  # longer than announced: what is left of this step is unknown, of the others it is not
    assert steps.left() == 200
    steps.begin()
    assert steps.left() == 300  # 150 each, by the pace of the first
    clock.now = 301
    steps.begin()  # the second was up to date
    assert steps.left() == 150


def test_of_a_chain_that_nobody_tried_nothing_is_said_before_a_step_has_ended(clock):
    steps = Chain([1, 1])
    steps.begin()
    assert steps.left() is None
    clock.now = 60
    steps.begin()
    assert steps.left() == 60


def test_a_chain_takes_no_less_than_the_step_that_is_running(clock, capsys):
    steps = Chain([1, 1], 10)
    steps.begin()
    assert (steps.left(), steps.left(60)) == (10, 65)
    with chain(steps):

        def slow():
            for number in range(3):
                clock.now += 40
                yield number

        list(track(slow(), total=3, description="Working"))
        with Bar(total=4, file=io.StringIO()) as bar:
            bar.n, bar.start_t = 1, bar.start_t - 30
            assert str(bar).endswith("all steps 01:35 left]")
    assert "Working: 1 of 3, 02:40 left, all steps 02:45 left" in capsys.readouterr().err


def test_progress_says_what_is_left_of_the_chain_around_it(clock, capsys):
    steps = Chain([1, 1], 600)
    steps.begin()
    with chain(steps):
        with Bar(total=4, file=io.StringIO(), desc="epoch") as bar:
            bar.set_postfix(loss="0.1")
            assert str(bar).endswith("loss=0.1, all steps 10:00 left]")

        def slow():
            for number in range(3):
                clock.now += 40
                yield number

        assert list(track(slow(), total=3, description="Working")) == [0, 1, 2]
    assert "Working: 1 of 3, 02:40 left, all steps 08:40 left" in capsys.readouterr().err
    with Bar(total=4, file=io.StringIO()) as bar:
        assert "all steps" not in str(bar)


def test_notes_leave_standard_output_alone(capsys):
    note("half way")
    assert capsys.readouterr() == ("", "half way\n")


def test_work_whose_amount_is_found_out_while_it_is_done(capsys, monkeypatch):
    seconds = iter([0.0, 1.0, 40.0, 60.0, 80.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    shown = Ongoing("Scoring", "images")
    shown.add(1000, total=None, state="", skipped=True)
    shown.add(400, total=None, state="9,000 listed so far")
    shown.add(100, total=10_000, state="")
    shown.add(300, total=10_000, state="")
    shown.close()
    lines = [
        "Scoring: 1,400 images, 10.0 a second, time left unknown, 9,000 listed so far",
        "Scoring: 1,800 of 10,000 images, 10.0 a second, 13:40 left",
    ]
    assert capsys.readouterr() == ("", "\n".join(lines) + "\n")


def test_its_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    shown = Ongoing("Scoring", "images")
    shown.add(10, total=None, state="30 listed so far")
    shown.add(10, total=40, state="", skipped=True)
    assert shown._bar is not None and (shown._bar.n, shown._bar.total, shown._bar.initial) == (20, 40, 10)
    shown.close()
    assert "Scoring" in capsys.readouterr().err
