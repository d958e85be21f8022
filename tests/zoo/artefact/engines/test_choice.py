"""Which engine answers: with an engine that stands for OpenVINO and computes what a test tells it to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.zoo.factories import write_artefact
from zoo.artefact import onnx_file as graph
from zoo.artefact.engines import choice, runtimes, speed
from zoo.artefact.engines.runtimes import ENGINES, REFERENCE
from zoo.artefact.engines.speed import Speed
from zoo.artefact.predictor import Predictor
from zoo.base.errors import ArtefactError, CheckError, UsageError

RATIO = Speed(engine="openvino", ratio=1.31, low=1.2, high=1.4, measured="2026-11-30")


class Fake:
    """ONNX Runtime under another name, off by as much as a test wants."""

    on_gpu = False

    def __init__(self, path: Path, card: Any, how: Any) -> None:
        self.name = "openvino"
        self._inner = ENGINES[REFERENCE](path, card, how)

    def logits(self, images: Any) -> Any:
        return self._inner.logits(images) + Fake.offset

    offset: Any = 0.0


@pytest.fixture
def openvino(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """openvino(ratio): installed, and measured as so much faster. Without a call: nothing may be measured."""
    monkeypatch.delenv("POCKETZOO_ENGINE")
    monkeypatch.setenv("POCKETZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(ENGINES, "openvino", Fake)
    monkeypatch.setattr(Fake, "offset", 0.0)
    monkeypatch.setattr(choice, "lacking", lambda name: "")
    monkeypatch.setattr(choice, "measure", lambda *given: pytest.fail("measured"))

    def measured(speed: Speed = RATIO) -> None:
        monkeypatch.setattr(choice, "measure", lambda *given: speed)

    return measured


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the same golden answer of both engines."""
    target = tmp_path / "model.onnx"
    write_artefact(target)
    return with_answer(target, lambda golden: golden)


def with_answer(path: Path, change: Callable[[tuple[float, ...]], tuple[float, ...]]) -> Path:
    model, card = graph.load(path)
    golden = card.use.golden
    assert golden is not None
    golden = dataclasses.replace(golden, engines={"openvino": change(golden.probabilities)})
    graph.write(model, dataclasses.replace(card, use=dataclasses.replace(card.use, golden=golden)), path)
    return path


def test_the_faster_one_answers_and_says_how_much(path: Path, openvino: Callable[..., None]) -> None:
    openvino()
    predictor = Predictor(path)
    assert predictor.engine == "openvino"
    expected = "openvino: 1.31x as fast as onnxruntime here (1.20 to 1.40, measured 2026-11-30)"
    assert predictor.engine_reason == expected


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.8, 0.7, 0.9), (1.2, 0.98, 1.5), (1.0, 1.0, 1.0)])
def test_what_may_be_noise_changes_nothing(
    path: Path, openvino: Callable[..., None], ratio: float, low: float, high: float
) -> None:
    openvino(Speed(engine="openvino", ratio=ratio, low=low, high=high, measured="2026-11-30"))
    predictor = Predictor(path)
    assert predictor.engine == REFERENCE
    assert predictor.engine_reason.startswith(f"onnxruntime: openvino is {ratio:.2f}x as fast as onnxruntime here")


def test_a_file_is_measured_once_per_number_of_threads(
    path: Path, openvino: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(choice, "measure", lambda *given: calls.append(1) or RATIO)
    assert [Predictor(path, threads=threads).engine for threads in (1, 1, 2, 1)] == ["openvino"] * 4
    assert len(calls) == 2


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"speed": 1}', '[{"machine": {}, "speed": {"ratio": "x"}}]'])
def test_a_broken_cache_is_measured_again(path: Path, openvino: Callable[..., None], content: str) -> None:
    openvino()
    Predictor(path)
    (file,) = (path.parent / "cache" / "engines").iterdir()
    right = json.loads(file.read_text())
    assert right[0]["speed"]["ratio"] == 1.31
    file.write_text(content)
    assert Predictor(path).engine == "openvino"
    assert json.loads(file.read_text())[-1] == right[0]


def test_a_value_of_the_wrong_type_in_the_cache_is_measured_again(path: Path, openvino: Callable[..., None]) -> None:
    openvino()
    Predictor(path)
    (file,) = (path.parent / "cache" / "engines").iterdir()
    entries = json.loads(file.read_text())
    entries[0]["speed"]["low"] = "much"
    file.write_text(json.dumps(entries))
    assert Predictor(path).engine == "openvino"
    assert json.loads(file.read_text())[0]["speed"]["low"] == 1.2


@pytest.mark.parametrize("place", ["a file", "no home"])
def test_a_cache_that_cannot_be_written_is_no_error(
    path: Path, openvino: Callable[..., None], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    openvino()
    if place == "a file":
        (path.parent / "cache").write_text("in the way")
    else:
        monkeypatch.setattr(speed, "cache_folder", lambda: None)
    assert [Predictor(path).engine for _ in range(2)] == ["openvino"] * 2


def test_a_wrong_engine_is_refused_with_its_numbers(path: Path, openvino: Callable[..., None]) -> None:
    Fake.offset = np.array([0.0, 1.0, 0.0], np.float32)
    predictor = Predictor(path)
    assert predictor.engine == REFERENCE
    assert "golden self-check failed: expected '" in predictor.engine_reason
    assert "off by 0." in predictor.engine_reason and "openvino on this machine" in predictor.engine_reason
    for named in ("openvino", "openvino,onnxruntime"):
        with pytest.raises(CheckError, match=r"expected '\w+' within 0\.001, got '\w+', off by 0\."):
            Predictor(path, engine=named)
    assert not (path.parent / "cache").exists()


def test_an_engine_that_became_wrong_is_refused_after_it_was_measured(
    path: Path, openvino: Callable[..., None]
) -> None:
    openvino()
    assert Predictor(path).engine == "openvino"
    Fake.offset = np.array([2.0, 0.0, 0.0], np.float32)
    predictor = Predictor(path)
    assert (predictor.engine, predictor.logits(np.zeros((1, 3, 32, 32), np.float32)).tolist()) == (REFERENCE, [[0] * 3])
    assert "golden self-check failed" in predictor.engine_reason


def test_each_engine_has_its_own_answer(path: Path, openvino: Callable[..., None]) -> None:
    openvino()
    Fake.offset = np.array([0.0, 0.0, 0.5], np.float32)
    golden = graph.read_card(path).use.golden
    assert golden is not None
    odds = np.array(golden.probabilities) * [1, 1, np.exp(0.5)]
    with_answer(path, lambda _: tuple((odds / odds.sum()).tolist()))
    assert Predictor(path).engine == "openvino"


def test_an_old_file_is_onnxruntimes(tmp_path: Path, openvino: Callable[..., None]) -> None:
    write_artefact(tmp_path / "model.onnx")
    model = graph.load(tmp_path / "model.onnx")[0]
    document = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "zoo.card"))
    assert "engines" not in document["use"]["golden"]
    predictor = Predictor(tmp_path / "model.onnx")
    assert predictor.engine == REFERENCE
    assert predictor.engine_reason.startswith("onnxruntime: openvino has no golden answer in the file")
    assert predictor.engine_reason.endswith("export it again")
    with pytest.raises(UsageError, match="no engine that was asked for can answer: openvino has no golden answer"):
        Predictor(tmp_path / "model.onnx", engine="openvino")
    assert Predictor(tmp_path / "model.onnx", engine="openvino,onnxruntime").engine_reason.startswith(
        "onnxruntime: asked for; openvino has no golden answer"
    )
    # A stage that is about to record it loads it all the same.
    assert Predictor(tmp_path / "model.onnx", engine="onnxruntime", check=False).engine == REFERENCE


def test_the_variable_is_obeyed_and_an_argument_comes_first(
    path: Path, openvino: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETZOO_ENGINE", "openvino")
    predictor = Predictor(path)
    assert (predictor.engine, predictor.engine_reason) == ("openvino", "openvino: asked for with POCKETZOO_ENGINE")
    assert Predictor(path, engine=REFERENCE).engine_reason == "onnxruntime: asked for"
    assert Predictor(path, providers=["CPUExecutionProvider"]).engine == REFERENCE
    monkeypatch.setenv("POCKETZOO_ENGINE", "opnvino")
    with pytest.raises(UsageError, match="unknown engine 'opnvino'; did you mean openvino"):
        Predictor(path)


def test_what_is_not_installed_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POCKETZOO_ENGINE")
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    predictor = Predictor(path)
    assert predictor.engine_reason == "onnxruntime: openvino is not installed (pip install 'pocketzoo[openvino]')"
    with pytest.raises(UsageError, match=r"can answer: openvino is not installed .*; or name onnxruntime"):
        Predictor(path, engine="openvino")
    assert Predictor(path, engine="openvino,onnxruntime").engine == REFERENCE


def test_a_graph_that_the_other_engine_cannot_run_is_onnxruntimes(
    path: Path, openvino: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path, card: Any, how: Any) -> Any:
        raise ArtefactError(f"{path}: OpenVINO 2026.4 cannot load it: no such operator")

    monkeypatch.setitem(ENGINES, "openvino", load)
    assert Predictor(path).engine_reason == f"onnxruntime: {path}: OpenVINO 2026.4 cannot load it: no such operator"
    with pytest.raises(ArtefactError, match="no such operator"):
        Predictor(path, engine="openvino")


def test_a_machine_that_answers_on_its_gpu_stays_there(
    path: Path, openvino: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ENGINES[REFERENCE]

    def on_gpu(*given: Any) -> Any:
        engine = load(*given)
        engine.on_gpu = True
        return engine

    monkeypatch.setitem(ENGINES, REFERENCE, on_gpu)
    predictor = Predictor(path)
    assert (predictor.on_gpu, predictor.engine_reason) == (True, "onnxruntime: this machine answers on its GPU")


def test_both_engines_are_measured_and_one_is_chosen(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing stands for anything here; which one is faster is the machine's business."""
    pytest.importorskip("openvino")
    monkeypatch.delenv("POCKETZOO_ENGINE")
    monkeypatch.setenv("POCKETZOO_CACHE", str(tmp_path / "cache"))
    first, second = Predictor(path, threads=1), Predictor(path, threads=1)
    assert first.engine in (REFERENCE, "openvino") and "x as fast as onnxruntime here (" in first.engine_reason
    assert (second.engine, second.engine_reason) == (first.engine, first.engine_reason)


def test_a_draft_is_computed_by_the_faster_one_and_not_remembered(path: Path, openvino: Callable[..., None]) -> None:
    openvino()
    # With the card of its parent, whose golden answer it need not repeat.
    with_answer(path, lambda golden: golden[::-1])
    assert Predictor(path, check=False).engine == "openvino"
    assert not (path.parent / "cache").exists()
    assert Predictor(path).engine == REFERENCE
