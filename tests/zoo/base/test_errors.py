"""The exception tree and the message about unknown names."""

from __future__ import annotations

import pytest

from zoo.base import errors
from zoo.base.errors import PocketzooError, UsageError, unknown_name

KINDS = [name for name in errors.__all__ if name.endswith("Error")]


def test_there_are_ten_kinds_and_the_docstring_draws_them_all():
    assert len(KINDS) == 10
    for name in KINDS:
        assert name in (errors.__doc__ or "")
        assert issubclass(getattr(errors, name), PocketzooError)


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("resnet19", ["resnet18", "vit"], "unknown model 'resnet19'; did you mean resnet18?"),
        ("qqq", ["lenet", "cnn5"], "unknown model 'qqq'; known: cnn5, lenet"),
        ("qqq", [f"model{i}" for i in range(21)], "unknown model 'qqq'; 21 names are known; none is close"),
        ("qqq", [], "unknown model 'qqq'; known: "),
    ],
)
def test_unknown_name(name, known, message):
    error = unknown_name("model", name, known)
    assert isinstance(error, UsageError)
    assert str(error) == message


def test_at_most_five_close_names_best_first():
    text = str(unknown_name("model", "resnet1", [f"resnet1{i}" for i in range(9)] + ["resnet1"]))
    assert text.startswith("unknown model 'resnet1'; did you mean resnet1, ")
    assert text.count(",") == 4
