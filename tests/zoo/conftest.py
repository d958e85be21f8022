"""Fixtures shared by the tests of zoo/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zoo.factories import write_artefact


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of artefacts that the code takes for `output/`; the memory of opened data sets is forgotten."""
    from zoo.data.catalogue import open_dataset

    folder = tmp_path / "output"
    folder.mkdir()
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(folder))
    open_dataset.cache_clear()
    yield folder
    open_dataset.cache_clear()


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """An ONNX file with a complete card."""
    path = tmp_path / "tiny" / "model.onnx"
    write_artefact(path)
    return path
