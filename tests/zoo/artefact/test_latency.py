"""Tests of zoo.artefact.latency."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo.factories import write_artefact
from zoo.artefact.latency import LatencyConfig, latencies
from zoo.base.errors import PocketzooError, UsageError

QUICK = LatencyConfig(rounds=2, seconds=0.01, warmup=1, threads=1)


@pytest.mark.parametrize("changes", [{"batch": 0}, {"rounds": 0}, {"seconds": 0.0}, {"threads": -1}])
def test_settings_out_of_range(changes: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be"):
        LatencyConfig(**changes)


def test_every_file_is_timed_in_every_round(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for path in paths:
        write_artefact(path)
    found = latencies(paths, QUICK)
    assert list(found) == paths
    assert [len(rounds) for rounds in found.values()] == [2, 2]
    assert all(len(samples) >= 20 and min(samples) > 0 for rounds in found.values() for samples in rounds)


def test_a_file_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not a graph")
    with pytest.raises(PocketzooError, match=r"measuring .*a.onnx in onnxruntime failed"):
        latencies([tmp_path / "a.onnx"], QUICK)
