"""Tests of compress.quantize.trials; whole runs are in tests/compress/quantize/test_stage.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from compress.quantize import trials
from zoo.artefact.latency import LatencyConfig


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], list[list[float]]]:
    """What is measured of a file in an engine; OpenVINO is there, and answers for the parent."""
    found: dict[tuple[str, str], list[list[float]]] = {}

    def timings(runs: Sequence[tuple[Path, str]], config: LatencyConfig) -> list[list[list[float]]]:
        return [found[path.stem, engine] for path, engine in runs]

    monkeypatch.setattr(trials, "timings", timings)
    monkeypatch.setattr(trials, "lacking", lambda name: "")
    monkeypatch.setattr(trials, "Predictor", lambda path: SimpleNamespace(engine="openvino"))
    monkeypatch.delenv("POCKETZOO_ENGINE", raising=False)
    return found


PARENT, CHILD = Path("parent.onnx"), Path("child.onnx")


def test_speeds_are_medians_beside_the_parent(timed: dict[tuple[str, str], list[list[float]]]) -> None:
    timed["parent", "openvino"] = [[4.0, 4.0, 9.0], [4.0], [5.0]]
    timed["child", "openvino"] = [[2.0], [1.0, 2.0, 7.0], [2.5]]
    timed["child", "onnxruntime"] = [[3.0], [3.0], [3.0]]
    (speed,) = trials.measure_speed(PARENT, [CHILD])
    assert (speed.speedup, speed.speedup_low, speed.speedup_high, speed.rounds) == (2.0, 2.0, 2.0, 3)
    assert (speed.parent_ms, speed.ms, speed.parent_engine, speed.engine) == (4.0, 2.0, "openvino", "openvino")
    assert speed.told
    timed["child", "openvino"] = [[2.0], [5.0], [2.5]]
    (speed,) = trials.measure_speed(PARENT, [CHILD])
    assert (speed.speedup, speed.speedup_low, speed.speedup_high, speed.told) == (2.0, 0.8, 2.0, False)


def test_the_faster_engine_counts(timed: dict[tuple[str, str], list[list[float]]]) -> None:
    timed["parent", "openvino"] = [[4.0]]
    timed["child", "openvino"] = [[5.0]]
    timed["child", "onnxruntime"] = [[2.0]]
    (speed,) = trials.measure_speed(PARENT, [CHILD])
    assert (speed.speedup, speed.parent_engine, speed.engine) == (2.0, "openvino", "onnxruntime")


def test_an_engine_that_may_not_answer_is_not_timed(
    timed: dict[tuple[str, str], list[list[float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed["parent", "openvino"] = [[4.0]]
    timed["child", "openvino"] = [[2.0]]
    monkeypatch.setenv("POCKETZOO_ENGINE", "openvino")
    assert trials.measure_speed(PARENT, [CHILD])[0].engine == "openvino"
    monkeypatch.delenv("POCKETZOO_ENGINE")
    monkeypatch.setattr(trials, "lacking", lambda name: "is not installed" if name == "openvino" else "")
    timed["child", "onnxruntime"] = [[3.0]]
    assert trials.measure_speed(PARENT, [CHILD])[0].engine == "onnxruntime"
