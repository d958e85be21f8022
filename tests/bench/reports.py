"""A report that was not measured with a clock, on images whose names and labels are hostile."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.report import measure as report
from bench.report.measure import Report, measure_report
from tests.bench.artefacts import family
from tests.zoo.factories import make_dataset
from zoo.artefact.latency import LatencyConfig
from zoo.data.dataset import Dataset
from zoo.data.image_set import ImageSet

HOSTILE = "<script>alert(1)</script>|`b`"


def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, labels: bool = True) -> Report:
    """A report on the pruned artefact and its parents, whose images have hostile names."""

    def fake(paths: Sequence[Path], config: LatencyConfig, engines: object) -> dict[Path, list[list[float]]]:
        return {path: [[4.0 / config.threads] * 3] * config.rounds for path in paths}

    monkeypatch.setattr(report, "latencies", fake)
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))
    files = family(tmp_path / "output")
    dataset: Dataset = make_dataset(40)
    samples = [dataclasses.replace(sample, name=HOSTILE) for sample in dataset.splits["validation"]]
    dataset = dataclasses.replace(dataset, splits={**dataset.splits, "validation": samples})
    pictures = ImageSet(
        name="birds",
        split="validation" if labels else "",
        samples=samples,
        dataset=dataset if labels else None,
    )
    config = LatencyConfig(threads=2, rounds=1)
    return measure_report(files["pruned"].parent, pictures, latency=config, command="pocketzoo report x")
