"""Tests of compress.search.evaluation, on a network that learns nothing and is small."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from compress.search import evaluation as module
from compress.search.evaluation import Settings, Workbench, carry_out
from compress.search.journal import FLOAT, INT8, PARENT, Journal, Record, Task
from tests.zoo.factories import make_card, make_dataset, make_input, write_artefact
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import Metrics
from zoo.artefact.latency import LatencyConfig
from zoo.base.errors import ArtefactError, CheckError, UsageError
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH, sha256_file
from zoo.data.dataset import Dataset
from zoo.networks import checkpoint
from zoo.networks.registry import build, count_macs
from zoo.training.loop.config import FitConfig

SMALL = {"filters": 16, "growth": "equal", "dense": 16, "img_size": 32}
QUICK = LatencyConfig(rounds=2, seconds=0.01, warmup=1, threads=1)
RANK = Task(kind="rank", ratio=0.7, importance="l2")
MEASURE = Task(kind="measure", ratio=0.7, importance="l2", epochs=1)


def fake_latencies(paths: list[Path], config: LatencyConfig) -> dict[Path, list[list[float]]]:
    """The parent takes 4 ms, then 8; others half of that, and INT8 a quarter."""
    share = {True: 0.25, False: 0.5}
    return {
        path: [[base * (1.0 if index == 0 else share[path.name == INT8_GRAPH])] * 3 for base in (4.0, 8.0)]
        for index, path in enumerate(paths)
    }


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Without test images that can be read."""
    made = make_dataset()
    gone = [dataclasses.replace(sample, source=Path("/gone.png")) for sample in made.splits["test"]]
    return dataclasses.replace(made, splits={**made.splits, "test": gone})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artefact") / CHECKPOINT
    model, spec = build("cnn5", classes=3, channels=1, arguments=SMALL), make_input(32, "L")
    card = make_card(architecture="cnn5", arguments=SMALL, spec=spec, stages=("train",))
    macs = count_macs(model, spec)
    checkpoint.save(model, dataclasses.replace(card, inform=dataclasses.replace(card.inform, macs=macs)), path)
    return path


@pytest.fixture
def bench(source: Path, tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    monkeypatch.setattr(module, "latencies", fake_latencies)
    settings = Settings(max_drop=50, fit=FitConfig(), latency=QUICK)
    return Workbench(source, tmp_path / "search", settings, dataset, name="small")


def test_a_candidate_goes_through_the_very_stages(
    bench: Workbench, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, ranked, made = (bench.run(task) for task in (PARENT, RANK, MEASURE))
    assert [record.error for record in (parent, ranked, made)] == ["", "", ""]
    place = bench.place(MEASURE)
    card = graph.read_card(place / INT8_GRAPH)
    assert [entry.stage for entry in card.lineage] == [
        "train",
        "prune",
        "recalibrate",
        "recover",
        "export",
        "quantize",
    ]
    assert card.name == "small-int8"
    assert card.lineage[1].parent == sha256_file(source)
    itself = [graph.read_card(bench.place(PARENT) / name) for name in (GRAPH, INT8_GRAPH)]
    assert [found.name for found in itself] == ["small", "small-int8"]
    assert itself[0].lineage[-1].parent == sha256_file(bench.place(PARENT) / CHECKPOINT)
    assert card.lineage[-2].parent == sha256_file(place / CHECKPOINT)
    assert card.lineage[-1].parent == sha256_file(place / GRAPH)
    assert card.lineage[-1].config["keep"] == "any"
    assert [metrics.split for metrics in card.inform.metrics] == ["validation"]
    assert parent.image_seconds > 0
    assert (parent.parent_ms, made.parent_ms) == (6.0, 6.0)
    assert [file.precision for file in made.files] == [FLOAT, INT8]
    assert [file.shares for file in parent.files] == [(1.0, 1.0), (0.25, 0.25)]
    assert [file.shares for file in made.files] == [(0.5, 0.5), (0.25, 0.25)]
    assert made.macs == ranked.macs < parent.macs
    assert made.macs <= 0.7 * parent.macs
    assert made.training_seconds > 0
    assert made.seconds >= made.timing_seconds
    monkeypatch.setattr(module, "recover", None)  # as after a kill between recovery and export
    assert bench._recover(MEASURE, place / CHECKPOINT) == card.lineage[3].seconds
    for file, path in zip(made.files, (place / GRAPH, place / INT8_GRAPH), strict=True):
        assert (file.digest, file.bytes, file.n) == (sha256_file(path), path.stat().st_size, 12)


def pretend(bench: Workbench, task: Task, top1: float, *names: str) -> None:
    """Files as if a task had made them."""
    card = make_card(stages=("train", "export"))
    metrics = Metrics(dataset="tiny", split="validation", n=12, top1=top1, low=top1, high=top1)
    for name in names:
        card = dataclasses.replace(card, inform=dataclasses.replace(card.inform, metrics=(metrics,)))
        write_artefact(bench.place(task) / name, card)
    (bench.place(task) / CHECKPOINT).write_bytes(bench.source.read_bytes())


def test_times_are_taken_again_where_the_files_are(bench: Workbench) -> None:
    pretend(bench, PARENT, 0.9, GRAPH, INT8_GRAPH)
    name = f"{PARENT.name} {INT8}"
    again = bench.run(Task(kind="retime", names=(name, "l2-0.10 int8")))
    assert again.shares == {name: (0.25, 0.25)}
    assert again.parent_ms == 6.0
    assert bench.run(Task(kind="retime", names=("l2-0.10 int8",))).shares == {}


def test_the_parents_graph_is_exported_again_where_it_is_gone(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def export(source: Path, target: Path, **options: Any) -> None:
        asked.append(source)
        target.write_bytes(b"graph")

    monkeypatch.setattr(module, "export", export)
    assert bench.reference() == bench.reference() == bench.place(PARENT) / GRAPH
    assert asked == [bench.place(PARENT) / CHECKPOINT]
    named, card = (checkpoint.read_card(path) for path in (asked[0], bench.source))
    assert named == dataclasses.replace(card, name="small")


def test_a_network_that_cannot_be_made_is_a_result(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(error: Exception) -> Any:
        def stage(*arguments: Any, **options: Any) -> None:
            raise error

        return stage

    for error, hopeless in ((UsageError("out of reach"), False), (ArtefactError("grouped"), True)):
        monkeypatch.setattr(module, "prune", refuse(error))
        record = bench.run(RANK)
        assert (record.error, record.hopeless) == (str(error), hopeless)
        assert not bench.run(MEASURE).hopeless
    monkeypatch.setattr(module, "export", refuse(CheckError("differs")))
    with pytest.raises(CheckError):
        bench.run(PARENT)


def test_what_cannot_be_quantized_is_measured_in_float(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise ArtefactError("nothing to quantize")

    monkeypatch.setattr(module, "quantize", refuse)
    assert [file.precision for file in bench.run(PARENT).files] == [FLOAT]


@pytest.mark.parametrize(("parent", "child", "left"), [(0.9, 0.8, 40.0), (0.9, 0.9, 50.0), (0.9, 0.3, 100.0)])
def test_quantization_may_lose_what_pruning_left(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, parent: float, child: float, left: float
) -> None:
    pretend(bench, PARENT, parent, GRAPH)
    pretend(bench, MEASURE, child, GRAPH)
    asked: list[float] = []
    monkeypatch.setattr(module, "quantize", lambda source, target, config, **options: asked.append(config.max_drop))
    bench._timed(MEASURE, bench.reference())
    assert asked == [pytest.approx(left)]


def test_beaten_files_go_and_the_parent_stays(bench: Workbench, tmp_path: Path) -> None:
    for name in ("parent", "ranked", "l2-0.70-e1", "l2-0.50"):
        (bench.folder / name).mkdir(parents=True)
    bench.clean([MEASURE])
    assert {place.name for place in bench.folder.iterdir()} == {"parent", "ranked", "l2-0.70-e1"}


def test_an_interrupted_task_counts_its_time(bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(task: Task) -> Record:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run", interrupt)
    journal = Journal(tmp_path / "c.jsonl", "a")
    with pytest.raises(KeyboardInterrupt):
        carry_out(PARENT, journal, bench)
    assert journal.open is None
    assert journal.records == []
    assert journal.seconds >= 0
