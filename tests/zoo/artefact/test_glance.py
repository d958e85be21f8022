"""The card of an ONNX file without the rest of it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.zoo.factories import make_graph, write_artefact
from zoo.artefact.glance import glance_at_card
from zoo.artefact.onnx_file import read_card
from zoo.base.errors import ArtefactError, CardError, PocketzooError


def test_the_card_is_the_one_that_onnx_reads(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_artefact(path)
    model = onnx.load_model(path)
    model.metadata_props.add(key="another", value="größer")
    model.doc_string = "before and behind"
    onnx.save_model(model, path)
    assert glance_at_card(path) == read_card(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_artefact(path)
    whole, card = path.read_bytes(), glance_at_card(path)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            assert glance_at_card(path) == card
        except PocketzooError as error:
            assert str(path) in str(error)


def test_what_is_no_model_or_has_no_card(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ArtefactError, match="no ONNX file at"):
        glance_at_card(path)
    path.write_bytes(b"")
    with pytest.raises(ArtefactError, match="it has no graph"):
        glance_at_card(path)
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(ArtefactError, match="not a readable ONNX file"):
        glance_at_card(path)
    onnx.save_model(make_graph(), path)
    with pytest.raises(CardError):
        glance_at_card(path)
