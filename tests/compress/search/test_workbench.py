"""Tests of compress.search.workbench, on a network that learns nothing and is small."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from compress.search import workbench as module
from compress.search.candidates import BF16, FLOAT, INT8, Candidate
from compress.search.workbench import Settings, Workbench
from tests.zoo.factories import make_card, make_dataset, make_input, photo_input
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import Input
from zoo.artefact.latency import LatencyConfig
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH, sha256_file
from zoo.data.dataset import Dataset
from zoo.networks import checkpoint
from zoo.networks.registry import build, count_macs
from zoo.training.loop.config import FitConfig

SMALL = {"channels": [8, 8, 16, 16]}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Without test images that can be read."""
    made = make_dataset()
    gone = [dataclasses.replace(sample, source=Path("/gone.png")) for sample in made.splits["test"]]
    return dataclasses.replace(made, splits={**made.splits, "test": gone})


def bench_for(folder: Path, spec: Input, dataset: Dataset) -> Workbench:
    model = build("resnet10t", classes=3, channels=spec.channels, arguments=SMALL)
    card = make_card(architecture="resnet10t", arguments=SMALL, spec=spec, stages=("train",))
    card = dataclasses.replace(card, inform=dataclasses.replace(card.inform, macs=count_macs(model, spec)))
    checkpoint.save(model, card, folder / "net" / CHECKPOINT)
    settings = Settings(fit=FitConfig(batch_size=4))
    return Workbench(folder / "net" / CHECKPOINT, folder / "search", settings, dataset, name="small")


def test_a_candidate_goes_through_the_very_stages(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Mapping[Path, str]] = []

    def timed(
        paths: Sequence[Path], config: LatencyConfig, *, engines: Mapping[Path, str]
    ) -> dict[Path, list[list[float]]]:
        asked.append(engines)
        return {path: [[1.0 + place, 9.0, 2.0 + place]] * config.rounds for place, path in enumerate(paths)}

    monkeypatch.setattr(module, "latencies", timed)
    monkeypatch.setenv("POCKETZOO_ENGINE", "onnxruntime")
    bench = bench_for(tmp_path, make_input(32, "L"), dataset)
    assert bench.precisions == (FLOAT, INT8)
    assert bench.sizes == {1.0: (32, 32), 0.71: (24, 24)} | {0.86: (24, 24)}
    assert bench.epoch_seconds() > 0
    parent = bench.measure(bench.itself, None)
    assert (parent.share, parent.speed.value, parent.engine) == (1.0, 1.0, "onnxruntime")
    candidate = Candidate(size=(24, 24), ratio=0.6, importance="l2", epochs=1, precision=INT8)
    macs, screened = bench.screen(candidate)
    found = bench.measure(candidate, parent.engine)
    place = bench.place(candidate)
    card = graph.read_card(place / INT8_GRAPH)
    stages = ["train", "resize", "prune", "recalibrate", "recover", "export", "quantize"]
    assert [entry.stage for entry in card.lineage] == stages
    assert card.name == "small-int8"
    assert card.use.input.size == (24, 24)
    assert card.lineage[1].config == {"size": [24, 24], "before": [32, 32]}
    assert card.lineage[1].parent == sha256_file(bench.source)
    assert card.lineage[-2].parent == sha256_file(place / CHECKPOINT)
    assert card.lineage[-1].parent == sha256_file(place / GRAPH)
    assert [metrics.split for metrics in card.inform.metrics] == ["validation"]
    assert found.macs == macs < 0.6 * parent.macs
    assert (found.metrics.n, screened.n) == (12, 12)
    assert found.hits == round(12 * found.metrics.top1)
    assert found.files == {name: sha256_file(place / name) for name in (CHECKPOINT, GRAPH, INT8_GRAPH)}
    assert (found.ms, found.parent_ms) == ((3.0,) * 6, (2.0,) * 6)
    assert found.training_seconds > 0
    assert asked[-1] == {bench.reference(): "onnxruntime", place / INT8_GRAPH: "onnxruntime"}
    # What is there is not made again, as after a kill or for another precision.
    monkeypatch.setattr(module, "recover", None)
    monkeypatch.setattr(module, "export", None)
    again = bench.measure(dataclasses.replace(candidate, precision=FLOAT), parent.engine)
    assert (again.training_seconds, again.files[GRAPH]) == (0.0, found.files[GRAPH])
    # The artefact itself has the new name, and nothing was done to it.
    itself = checkpoint.read_card(bench.place(bench.itself) / CHECKPOINT)
    assert (itself.name, [entry.stage for entry in itself.lineage]) == ("small", ["train"])
    bench.clean([candidate])
    assert {path.name for path in bench.folder.iterdir()} == {
        "l2-0.60-24x24-e1",
        "l2-0.60-24x24.safetensors",
        "parent.onnx",
        "unpruned-32x32",
        "whole-24x24.safetensors",
        "whole-32x32.safetensors",
    }
    bench.clean([])
    assert not place.exists()


def test_a_smaller_input_shows_as_much_of_an_image(tmp_path: Path, dataset: Dataset) -> None:
    bench = bench_for(tmp_path, photo_input(128, 144), dataset)
    assert bench.sizes == {1.0: (128, 128), 0.86: (96, 96), 0.71: (96, 96)}
    small = module._at(bench.card.use.input, (96, 96))
    assert (small.size, small.resize.edge) == ((96, 96), 108)
    wide = dataclasses.replace(bench.card.use.input, size=(96, 144))
    assert module._at(wide, (64, 96)).resize.edge == 96


@pytest.mark.parametrize(
    ("engine", "lacks", "found"),
    [
        ("", "", (FLOAT, INT8, BF16)),
        ("", "needs a processor", (FLOAT, INT8)),
        ("openvino", "", (FLOAT, INT8)),
        ("openvino-bf16,onnxruntime", "", (FLOAT, INT8, BF16)),
    ],
)
def test_bfloat16_where_it_can_and_may_compute(
    tmp_path: Path,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    lacks: str,
    found: tuple[str, ...],
) -> None:
    monkeypatch.setenv("POCKETZOO_ENGINE", engine)
    monkeypatch.setattr(module, "lacking", lambda name: lacks)
    assert bench_for(tmp_path, make_input(32, "L"), dataset).precisions == found
