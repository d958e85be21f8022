"""Fixtures of the tests of data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zoo.data.web import Site, serve


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A web server that has nothing yet."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as running:
        yield running


@pytest.fixture
def data_home(tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for downloads; nothing is remembered of others."""
    folder = tmp_path / "data"
    monkeypatch.setenv("POCKETZOO_DATA", str(folder))
    return folder
