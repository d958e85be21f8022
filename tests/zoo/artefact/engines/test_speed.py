"""Timing two engines, and remembering what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.zoo.factories import make_card
from zoo.artefact.engines import speed
from zoo.artefact.engines.speed import Speed, forget, measure, recall, remember

SPEED = Speed(engine="openvino", ratio=1.5, low=1.4, high=1.6, measured="2026-11-30")


class Clock:
    """Time that passes only where an engine computes or somebody sleeps."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Engine:
    on_gpu = False

    def __init__(self, name: str, clock: Clock, seconds: list[float]) -> None:
        self.name, self.calls, self._clock, self._seconds = name, 0, clock, seconds

    def logits(self, images: Any) -> Any:
        assert images.shape == (1, 3, 32, 32)
        self._clock.now += self._seconds[min(self.calls, len(self._seconds) - 1)]
        self.calls += 1
        return np.zeros((1, 3), np.float32)


def _measure(monkeypatch: pytest.MonkeyPatch, one: list[float], other: list[float]) -> tuple[Speed, int]:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    engines = Engine("onnxruntime", clock, one), Engine("openvino", clock, other)
    return measure(*engines, make_card()), engines[0].calls


def test_a_ratio_of_medians_with_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    speed, calls = _measure(monkeypatch, [0.003], [0.002])
    assert (speed.engine, speed.ratio, speed.low, speed.high, speed.faster) == ("openvino", 1.5, 1.5, 1.5, True)
    # Three turns of a twentieth of a second and one inference before each.
    assert calls == 3 * (1 + 17)


@pytest.mark.parametrize(("other", "turns"), [(0.0026, 5), (0.0024, 3), (0.0035, 5), (0.0037, 3)])
def test_what_is_clear_is_not_measured_for_longer(monkeypatch: pytest.MonkeyPatch, other: float, turns: int) -> None:
    assert _measure(monkeypatch, [0.003], [other])[1] == turns * (1 + 17)


def test_the_first_inference_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _measure(monkeypatch, [0.004], [9.0, 0.002])[0].ratio == 2.0


def test_slow_networks_get_three_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    speed, calls = _measure(monkeypatch, [2.0], [4.0])
    assert (speed.ratio, speed.faster, calls) == (0.5, False, 3 * 3)


def test_one_slow_round_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    speed, _ = _measure(monkeypatch, [1.0], [0.9] * 3 + [1.2] * 3 + [0.9] * 3)
    assert (speed.low, speed.faster) == (0.833, False)
    assert speed.sentence.startswith("1.11x as fast as onnxruntime here (0.83 to 1.11, measured ")


def test_what_was_measured_belongs_to_file_and_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POCKETZOO_CACHE", str(tmp_path))
    machine: dict[str, Any] = {"cpu": "x", "threads": 2, "flags": ["avx2"]}
    remember("a" * 64, machine, SPEED)
    remember("a" * 64, machine | {"threads": 1}, Speed(**{**vars(SPEED), "ratio": 0.7, "low": 0.6}))
    assert recall("a" * 64, machine) == SPEED
    found = recall("a" * 64, machine | {"threads": 1})
    assert found is not None and (found.ratio, found.faster) == (0.7, False)
    for digest, other in (("b" * 64, machine), ("a" * 64, machine | {"cpu": "y"}), ("a" * 64, machine | {"flags": []})):
        assert recall(digest, other) is None
    remember("a" * 64, machine, Speed(**{**vars(SPEED), "ratio": 1.7}))
    again = recall("a" * 64, machine)
    assert again is not None and again.ratio == 1.7
    forget("a" * 64)
    forget("b" * 64)
    assert recall("a" * 64, machine) is None


def test_nobody_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("POCKETZOO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert recall("a" * 64, {}) is None
    remember("a" * 64, {}, SPEED)
    forget("a" * 64)
    assert recall("a" * 64, {}) is None
