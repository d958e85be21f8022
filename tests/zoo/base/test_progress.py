"""Progress goes to standard error, and only where somebody looks."""

from __future__ import annotations

from zoo.base.progress import note, track


def test_silent_without_a_terminal(capsys):
    assert list(track(range(3), total=3, description="Working")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_notes_leave_standard_output_alone(capsys):
    note("half way")
    assert capsys.readouterr() == ("", "half way\n")
