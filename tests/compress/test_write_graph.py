"""What publishing records of engines: golden answer and accuracy of those that agree, numbers of those that do not."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress import write_graph
from compress.write_graph import AGREEMENT, publish
from tests.zoo.factories import make_card, make_dataset, make_graph
from zoo.artefact.card import Card
from zoo.artefact.engines.runtimes import ENGINES, REFERENCE
from zoo.artefact.onnx_file import read_card
from zoo.artefact.predictor import Predictor
from zoo.base.errors import ArtefactError
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages


class Noisy:
    """ONNX Runtime under another name, whose logits are off by a share of their standard deviation."""

    on_gpu = False
    share = 0.0
    name = "openvino"

    def __init__(self, path: Path, card: Card, how: Any) -> None:
        self._inner = ENGINES[REFERENCE](path, card, how)

    def logits(self, images: Any) -> Any:
        found = self._inner.logits(images)
        sign = np.where(np.arange(found.size).reshape(found.shape) % 2, 1, -1)
        return (found + sign * self.share).astype(np.float32)


@pytest.fixture
def openvino(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Noisy]:
    monkeypatch.setitem(ENGINES, "openvino", Noisy)
    monkeypatch.setenv("POCKETZOO_ENGINE", "openvino,onnxruntime")
    monkeypatch.setattr(write_graph, "lacking", lambda name: "")
    monkeypatch.setattr(Noisy, "share", 0.0)
    return Noisy


def _publish(path: Path, dataset: Dataset | None = None) -> Card:
    card = make_card(stages=("train", "export"))
    model = make_graph()
    return publish(model, card, path, dataset=dataset, begin=0.0)


@pytest.fixture
def labelled() -> Dataset:
    return dataclasses.replace(make_dataset(20), colour="RGB")


def test_an_engine_that_agrees_has_its_own_golden_answer_and_accuracy(
    tmp_path: Path, openvino: type[Noisy], labelled: Dataset
) -> None:
    openvino.share = 1e-3
    card = _publish(tmp_path / "model.onnx", labelled)
    assert read_card(tmp_path / "model.onnx") == card
    golden = card.use.golden
    assert golden is not None and list(golden.engines) == ["openvino"]
    assert 0 < np.abs(np.subtract(golden.engines["openvino"], golden.probabilities)).max() < 1e-3
    assert [(found.engine, found.split, found.n) for found in card.inform.metrics] == [
        ("onnxruntime", "validation", 20),
        ("openvino", "validation", 20),
    ]
    assert card.metrics("validation") == card.inform.metrics[0]
    assert card.metrics("validation", "openvino") == card.inform.metrics[1]
    assert 0 < card.lineage[-1].summary["engines"]["openvino"] < AGREEMENT["openvino"]


@pytest.mark.parametrize("with_data", [True, False])
def test_an_engine_that_does_not_agree_has_none_and_the_lineage_says_by_how_much(
    tmp_path: Path, openvino: type[Noisy], labelled: Dataset, capsys: pytest.CaptureFixture[str], with_data: bool
) -> None:
    openvino.share = 2.0
    card = _publish(tmp_path / "model.onnx", labelled if with_data else None)
    assert card.use.golden is not None and card.use.golden.engines == {}
    assert [found.engine for found in card.inform.metrics] == (["onnxruntime"] if with_data else [])
    assert card.lineage[-1].summary["engines"]["openvino"] > 10 * AGREEMENT["openvino"]
    assert "openvino gets no golden answer" in (said := capsys.readouterr().err) and "at most 6% is allowed" in said
    assert Predictor(tmp_path / "model.onnx", engine="openvino,onnxruntime").engine == REFERENCE


def test_answers_that_are_no_numbers_do_not_agree(tmp_path: Path, openvino: type[Noisy]) -> None:
    openvino.share = float("nan")
    card = _publish(tmp_path / "model.onnx")
    assert card.use.golden is not None and card.use.golden.engines == {}
    assert card.lineage[-1].summary["engines"] == {"openvino": 1e6}


@pytest.mark.parametrize("error", [ArtefactError("x: OpenVINO cannot load it"), RuntimeError("Exception from src")])
def test_a_graph_that_an_engine_cannot_run_is_written_without_it(
    tmp_path: Path, openvino: type[Noisy], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def logits(self: Noisy, images: Any) -> Any:
        raise error

    monkeypatch.setattr(Noisy, "logits", logits)
    card = _publish(tmp_path / "model.onnx")
    assert card.use.golden is not None and card.use.golden.engines == {}
    assert card.lineage[-1].summary["engines"] == {"openvino": str(error)}


def test_one_engine_is_in_memory_at_a_time_and_images_are_decoded_once(
    tmp_path: Path, openvino: type[Noisy], labelled: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Noisy] = weakref.WeakSet()
    most, read = [], []

    class Counted(Noisy):
        def __init__(self, path: Path, card: Card, how: Any) -> None:
            super().__init__(path, card, how)
            alive.add(self)

        def logits(self, images: Any) -> Any:
            most.append(len(alive))
            return super().logits(images)

    class Other(Counted):
        name = "openvino-bf16"

    class Images(DecodedImages):
        def _keep(self, index: int, image: torch.Tensor) -> None:
            read.append(index)
            super()._keep(index, image)

    monkeypatch.setitem(ENGINES, "openvino", Counted)
    monkeypatch.setitem(ENGINES, "openvino-bf16", Other)
    monkeypatch.setenv("POCKETZOO_ENGINE", "openvino,openvino-bf16")
    monkeypatch.setattr(write_graph, "DecodedImages", Images)
    card = publish(make_graph(), make_card(stages=("train", "export")), tmp_path / "model.onnx", dataset=labelled)
    assert [found.engine for found in card.inform.metrics] == ["onnxruntime", "openvino", "openvino-bf16"]
    assert set(most) == {1} and sorted(read) == list(range(20))


def test_what_may_not_answer_here_is_not_asked(
    tmp_path: Path, openvino: type[Noisy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETZOO_ENGINE", "onnxruntime")
    monkeypatch.setitem(ENGINES, "openvino", lambda *given: pytest.fail("loaded"))
    card = _publish(tmp_path / "model.onnx")
    assert card.use.golden is not None and card.use.golden.engines == {}
    assert "engines" not in card.lineage[-1].summary


def test_which_one_is_faster_is_measured_where_the_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("POCKETZOO_ENGINE", "auto")
    monkeypatch.setenv("POCKETZOO_CACHE", str(tmp_path / "cache"))
    card = _publish(tmp_path / "model.onnx")
    assert card.use.golden is not None and "openvino" in card.use.golden.engines
    assert card.lineage[-1].summary["engines"]["openvino"] < 1e-5
    (file,) = (tmp_path / "cache" / "engines").iterdir()
    assert file.stem == Predictor(tmp_path / "model.onnx", engine="onnxruntime").digest
    assert Predictor(tmp_path / "model.onnx", engine="openvino").engine == "openvino"
