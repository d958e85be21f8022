"""What an artefact may be called."""

from __future__ import annotations

import pytest

from zoo.base.errors import UsageError
from zoo.base.names import LONGEST_NAME, check_name, shown_name, unfit_name


@pytest.mark.parametrize("name", ["vit", "my photos-lenet", "größe-resnet18", "x" * (LONGEST_NAME - 12), "a.b"])
def test_names_that_do(name: str) -> None:
    check_name(name)
    assert unfit_name(name) is None


@pytest.mark.parametrize(
    "name", ["x:y-lenet", " photos", "photos ", "a\nb", "\udcff-lenet", ".photos-lenet", "", "\u202ea"]
)
def test_names_that_do_not(name: str) -> None:
    with pytest.raises(UsageError, match=r"a model cannot be called .*--set name=NAME"):
        check_name(name)
    assert unfit_name(name)


def test_what_is_made_of_it_must_fit_too() -> None:
    name = "x" * (LONGEST_NAME - 11)
    assert unfit_name(name) is None
    assert unfit_name(f"{name}-pruned-int8")
    with pytest.raises(UsageError, match="at most 116 printable characters"):
        check_name(name)


def test_a_name_is_shown_in_printable_characters() -> None:
    assert shown_name("a\nb") == "a\\nb"
    assert len(shown_name("x" * 500)) == LONGEST_NAME
