"""Strict reading of plain values as dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from zoo.base.documents import DocumentError, to_dataclass


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 0
    on: bool = False
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    many: tuple[int, ...] = ()
    pair: tuple[str, float] = ("", 0.0)
    table: Mapping[str, int] = field(default_factory=dict)
    rest: Any = None
    either: int | tuple[int, int] | None = None


def test_reads_every_kind_of_field():
    document = {
        "name": "n",
        "count": 3,
        "on": True,
        "inner": {"rate": 2},
        "maybe": {"rate": 0.5},
        "many": [1, 2],
        "pair": ["a", 2],
        "table": {"x": 1},
        "rest": [{"free": None}],
    }
    found = to_dataclass(Outer, document, "doc")
    assert found == Outer("n", 3, True, Inner(2.0), Inner(0.5), (1, 2), ("a", 2.0), {"x": 1}, [{"free": None}])
    assert isinstance(found.inner.rate, float)


@pytest.mark.parametrize(("value", "found"), [(3, 3), ([3, 4], (3, 4)), (None, None)])
def test_one_of_two_kinds(value, found):
    assert to_dataclass(Outer, {"name": "n", "either": value}, "doc").either == found


def test_defaults_and_none():
    assert to_dataclass(Outer, {"name": "n", "maybe": None}, "doc") == Outer("n")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "doc: key 'name' is missing"),
        ({"name": "n", "cuont": 1}, "doc: unknown key 'cuont'; did you mean count"),
        ({"name": "n", "inner": {"rat": 1}}, "doc.inner: unknown key 'rat'; did you mean rate?"),
        ({"name": 1}, "doc.name: expected str, got 1"),
        ({"name": "n", "either": "x"}, "doc.either: expected int or tuple, got 'x'"),
        ({"name": "n", "either": [1, 2, 3]}, "doc.either: expected 2 values, got 3"),
        ({"name": "n", "either": [1, "x"]}, "doc.either[1]: expected int, got 'x'"),
        ({"name": "n", "count": 1.0}, "doc.count: expected int, got 1.0"),
        ({"name": "n", "count": True}, "doc.count: expected int, got True"),
        ({"name": "n", "on": 1}, "doc.on: expected bool, got 1"),
        ({"name": "n", "inner": {"rate": True}}, "doc.inner.rate: expected float, got True"),
        ({"name": "n", "inner": {"rate": "1"}}, "doc.inner.rate: expected float, got '1'"),
        ({"name": "n", "inner": {"rate": 10**400}}, "doc.inner.rate: expected float, got a whole number too large"),
        ({"name": "n", "inner": None}, "doc.inner: expected a table of keys, got None"),
        ({"name": "n", "many": [1, "2"]}, "doc.many[1]: expected int, got '2'"),
        ({"name": "n", "many": "12"}, "doc.many: expected tuple, got '12'"),
        ({"name": "n", "pair": ["a"]}, "doc.pair: expected 2 values, got 1"),
        ({"name": "n", "pair": ["a", "b"]}, "doc.pair[1]: expected float, got 'b'"),
        ({"name": "n", "table": {"x": "1"}}, "doc.table.x: expected int, got '1'"),
        ({"name": "n", "table": []}, "doc.table: expected Mapping, got []"),
        ([], "doc: expected a table of keys, got []"),
    ],
)
def test_messages_start_with_the_place(document, message):
    with pytest.raises(DocumentError) as caught:
        to_dataclass(Outer, document, "doc")
    assert str(caught.value).startswith(message)


def test_long_values_are_cut_in_messages():
    with pytest.raises(DocumentError) as caught:
        to_dataclass(Outer, {"name": "n", "count": "x" * 1000}, "doc")
    assert len(str(caught.value)) < 130
