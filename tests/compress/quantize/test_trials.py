"""Tests of compress.quantize.trials; whole runs are in tests/compress/quantize/test_stage.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from compress.quantize import trials
from zoo.artefact.latency import LatencyConfig

PARENT, CHILD = Path("parent.onnx"), Path("child.onnx")

Rounds = list[list[float]]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[Path, str], Rounds]:
    """What the next rounds of a file in the engine that answers for it take; OpenVINO answers for the parent."""
    found: dict[tuple[Path, str], Rounds] = {}

    def timings(runs: Sequence[tuple[Path, str]], config: LatencyConfig) -> list[Rounds]:
        return [[found[run].pop(0) for _ in range(config.rounds)] for run in runs]

    def predictor(path: Path, *, check: bool = True) -> SimpleNamespace:
        assert check == (path == PARENT)
        return SimpleNamespace(engine="openvino" if path == PARENT else "onnxruntime")

    monkeypatch.setattr(trials, "timings", timings)
    monkeypatch.setattr(trials, "Predictor", predictor)
    return found


def test_speeds_are_medians_beside_the_parent(timed: dict[tuple[Path, str], Rounds]) -> None:
    timed[PARENT, "openvino"] = [[4.0, 4.0, 9.0], [4.0], [5.0], [4.0], [4.0], [4.0]]
    timed[CHILD, "onnxruntime"] = [[2.0], [1.0, 2.0, 7.0], [2.5], [1.0], [2.5], [2.0]]
    speed = trials.measure_speed(PARENT, CHILD)
    assert (speed.speedup, speed.speedup_low, speed.speedup_high, speed.rounds) == (2.0, 1.6, 4.0, 6)
    assert (speed.parent_ms, speed.ms, speed.parent_engine, speed.engine) == (4.0, 2.0, "openvino", "onnxruntime")
    assert speed.told


def test_what_six_rounds_do_not_tell_gets_three_more(timed: dict[tuple[Path, str], Rounds]) -> None:
    timed[PARENT, "openvino"] = [[4.0]] * 10
    timed[CHILD, "onnxruntime"] = [[5.0], *[[2.0]] * 9]
    speed = trials.measure_speed(PARENT, CHILD)
    assert (speed.speedup, speed.speedup_low, speed.rounds, speed.told) == (2.0, 2.0, 9, True)
    assert timed[PARENT, "openvino"] == [[4.0]] and timed[CHILD, "onnxruntime"] == [[2.0]]


def test_nine_rounds_may_not_tell_either(timed: dict[tuple[Path, str], Rounds]) -> None:
    timed[PARENT, "openvino"] = [[4.0]] * 9
    timed[CHILD, "onnxruntime"] = [[5.0], *[[2.0]] * 7, [5.0]]
    speed = trials.measure_speed(PARENT, CHILD)
    assert (speed.speedup, speed.speedup_low, speed.speedup_high, speed.rounds) == (2.0, 0.8, 2.0, 9)
    assert not speed.told
