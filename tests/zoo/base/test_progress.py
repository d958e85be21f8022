"""Progress goes to standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from zoo.base import progress
from zoo.base.progress import note, track


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


def test_notes_leave_standard_output_alone(capsys):
    note("half way")
    assert capsys.readouterr() == ("", "half way\n")
