"""Tests of compress.quantize.trials; whole runs are in tests/compress/quantize/test_stage.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.quantize import trials


def test_speeds_are_medians_beside_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    parent, child = Path("parent.onnx"), Path("child.onnx")
    found = {parent: [[4.0, 4.0, 9.0], [4.0], [5.0]], child: [[2.0], [1.0, 2.0, 7.0], [2.5]]}
    monkeypatch.setattr(trials, "latencies", lambda paths, config: {path: found[path] for path in paths})
    (speed,) = trials.measure_speed(parent, [child])
    assert speed == trials.Speed(speedup=2.0, speedup_low=2.0, speedup_high=2.0, rounds=3, parent_ms=4.0, ms=2.0)
    assert speed.told
    found[child] = [[2.0], [5.0], [2.5]]
    (speed,) = trials.measure_speed(parent, [child])
    assert (speed.speedup, speed.speedup_low, speed.speedup_high, speed.told) == (2.0, 0.8, 2.0, False)
