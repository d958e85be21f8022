"""Tests of compress.search.stage: whole searches over made-up candidates, and one over a real network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.search import stage as module
from compress.search.evaluation import Settings, Workbench
from compress.search.journal import PARENT, Journal, Record, Task
from compress.search.pareto_front import Goal
from compress.search.stage import CANDIDATES, PICTURE, Found, OptimizeConfig, fit_of, images_needed, optimize
from tests.compress.simulated import World
from tests.zoo.factories import LABELS, make_card, make_dataset, make_input, write_artefact
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import LineageEntry
from zoo.base.errors import ArtefactError, DataError, UsageError
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH, sha256_file
from zoo.data.dataset import Dataset, Sample
from zoo.networks import checkpoint
from zoo.networks.registry import build
from zoo.networks.stages import Freezing
from zoo.training.loop.config import FitConfig

FILES = {CHECKPOINT, GRAPH, INT8_GRAPH}


class Pretended(Workbench):
    """Numbers of a simulated world; the files are tiny graphs that really answer."""

    world = World(edge=0.3, n=1000)
    example: Path
    """A graph that answers."""
    done: list[Task]
    """What all benches did, in order."""
    fail_at: int | None = None
    """Ctrl-C in this task of all."""

    def __init__(self, source: Path, folder: Path, settings: Settings, dataset: Dataset, *, name: str) -> None:
        self.source, self.folder, self.settings, self.dataset, self.name = source, folder, settings, dataset, name

    def reference(self) -> Path:
        path = self.place(PARENT) / GRAPH
        if not path.is_file():
            path.parent.mkdir(parents=True)
            path.write_bytes(self.example.read_bytes())
        return path

    def run(self, task: Task) -> Record:
        if len(type(self).done) == type(self).fail_at:
            type(self).fail_at = None
            raise KeyboardInterrupt
        type(self).done.append(task)
        record = self.world.run(task)
        files = []
        for file in record.files:
            place = self.place(task)
            place.mkdir(parents=True, exist_ok=True)
            (place / CHECKPOINT).write_bytes(f"checkpoint of {task.name}".encode())
            path = place / {"float32": GRAPH, "int8": INT8_GRAPH}[file.precision]
            model, card = graph.load(self.example)
            graph.write(model, dataclasses.replace(card, name=f"{task.name} {file.precision}"), path)
            files.append(dataclasses.replace(file, digest=sha256_file(path)))
        return dataclasses.replace(record, files=tuple(files))


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("example") / GRAPH
    write_artefact(path)
    return path


@pytest.fixture
def bench(example: Path) -> type[Pretended]:
    return type("Bench", (Pretended,), {"done": [], "example": example})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "net" / CHECKPOINT
    card = make_card(spec=make_input(28, "L"), stages=("train",))
    checkpoint.save(build("lenet", classes=3, channels=1), card, path)
    return path


@pytest.fixture
def go(source: Path, tmp_path: Path, bench: type[Pretended]) -> Callable[..., Found]:
    def search(goal: Goal | None = None, *, dataset: Dataset | None = None, **changes: Any) -> Found:
        config = OptimizeConfig(goal=goal or Goal(), **({"minutes": 1000.0} | changes))
        return optimize(source, tmp_path / "out", config, dataset=dataset or make_dataset(), workbench=bench)

    return search


def unreadable_test() -> Dataset:
    """A data set whose test images cannot be read."""
    dataset = make_dataset()
    gone = [dataclasses.replace(sample, source=Path("/gone.png")) for sample in dataset.splits["test"]]
    return dataclasses.replace(dataset, splits={**dataset.splits, "test": gone})


def test_the_chosen_files_are_all_that_stays(go: Callable[..., Found], tmp_path: Path) -> None:
    found = go()
    out = tmp_path / "out"
    assert found.chosen is not None
    assert found.chosen.task.ratio == pytest.approx(0.32, abs=0.03)
    assert found.path == out / INT8_GRAPH
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {*FILES, CANDIDATES, PICTURE}
    assert (out / CHECKPOINT).read_text() == f"checkpoint of {found.chosen.task.name}"
    assert graph.read_card(out / INT8_GRAPH).name == found.chosen.name
    assert found.test is not None
    assert found.test.chosen.n == 12
    assert found.test.agreement == 1.0
    assert found.test.drop == 0.0
    assert found.test.margin > 0


def test_the_test_split_is_not_touched_before_the_files_are_written(go: Callable[..., Found], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png"):
        go(dataset=unreadable_test())
    assert {path.name for path in (tmp_path / "out").glob("model.*")} == FILES


def test_the_test_split_is_read_once(
    go: Callable[..., Found], bench: type[Pretended], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = go()
    work = len(bench.done)
    read: list[str] = []
    monkeypatch.setattr(Sample, "read", lambda sample: read.append(sample.name))
    second = go()
    assert read == []
    assert len(bench.done) == work
    assert second == first


@pytest.mark.parametrize("at", [0, 1, 3, 6, 9])
def test_an_interrupted_search_ends_like_one_that_was_not(
    go: Callable[..., Found], source: Path, tmp_path: Path, bench: type[Pretended], at: int
) -> None:
    whole_bench = type("Whole", (bench,), {"done": []})
    whole = optimize(
        source, tmp_path / "whole", OptimizeConfig(minutes=1000.0), dataset=make_dataset(), workbench=whole_bench
    )
    bench.fail_at = at
    with pytest.raises(KeyboardInterrupt):
        go()
    assert not list((tmp_path / "out").glob("model.*"))
    found = go()
    assert bench.done == whole_bench.done
    assert [entry.name for entry in found.candidates] == [entry.name for entry in whole.candidates]
    assert found.chosen is not None
    assert whole.chosen is not None
    assert found.chosen.name == whole.chosen.name


def test_after_an_interruption_fewer_minutes_take_the_best_so_far(
    go: Callable[..., Found], bench: type[Pretended], capsys: pytest.CaptureFixture[str]
) -> None:
    bench.fail_at = 6
    with pytest.raises(KeyboardInterrupt):
        go()
    assert "best so far:" in capsys.readouterr().err
    found = go(minutes=0.01)
    assert len(bench.done) <= 7  # at most timing again what was close
    assert found.path is not None
    assert found.path.is_file()


def test_time_of_a_killed_task_counts(go: Callable[..., Found], tmp_path: Path, bench: type[Pretended]) -> None:
    bench.fail_at = 1
    with pytest.raises(KeyboardInterrupt):
        go()
    path = tmp_path / "out" / CANDIDATES
    # As kill -9 leaves it: begun, never lost, and half a line.
    lines = path.read_text().splitlines(keepends=True)
    begun = json.loads(lines[-2])
    assert begun["kind"] == "begun"
    begun["content"]["time"] -= 50
    path.write_text("".join(lines[:-2]) + json.dumps(begun) + "\n" + lines[-1][:20])
    go()
    lost = [json.loads(line)["content"] for line in path.read_text().splitlines() if '"lost"' in line]
    assert len(lost) == 1
    assert 49 <= lost[0] <= 60


@pytest.mark.parametrize("missing", [CHECKPOINT, INT8_GRAPH])
def test_a_killed_move_is_completed(
    go: Callable[..., Found], tmp_path: Path, bench: type[Pretended], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if Path(target).name == missing and Path(target).parent.name == "out":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            go()
    work = len(bench.done)
    found = go()
    assert len(bench.done) == work
    assert found.path is not None
    assert {path.name for path in (tmp_path / "out").glob("model.*")} == FILES


def test_another_goal_uses_what_is_known_and_makes_deleted_files_again(
    go: Callable[..., Found], bench: type[Pretended], tmp_path: Path
) -> None:
    go()
    before = list(bench.done)
    found = go(Goal(latency_ms=5.0))
    assert found.chosen is not None
    assert found.chosen.ms <= 5.0
    assert found.path is not None
    again = [task for task in bench.done[len(before) :] if task in before]
    assert again == [found.chosen.task]
    assert (tmp_path / "out" / CHECKPOINT).read_text() == f"checkpoint of {found.chosen.task.name}"


def test_another_seed_is_another_search(go: Callable[..., Found], bench: type[Pretended]) -> None:
    go()
    work = len(bench.done)
    go(seed=1)
    assert len(bench.done) == 2 * work


def test_a_goal_that_nothing_meets_writes_nothing_and_says_what_would(go: Callable[..., Found], tmp_path: Path) -> None:
    found = go(Goal(max_drop=0.5, latency_ms=0.4))
    assert found.chosen is None
    assert found.path is None
    assert found.test is None
    assert len(found.nearest) == 3
    assert not list((tmp_path / "out").glob("model.*"))
    assert "the nearest would with --" in found.advice(Goal(max_drop=0.5, latency_ms=0.4))
    assert found.picture.is_file()
    assert found.earlier == ()


def test_files_of_an_earlier_search_stay_and_are_told(go: Callable[..., Found], tmp_path: Path) -> None:
    assert go().earlier == ()
    before = {path: sha256_file(path) for path in (tmp_path / "out").glob("model.*")}
    found = go(Goal(max_drop=0.5, latency_ms=0.4))
    assert (found.chosen, found.path) == (None, None)
    assert set(found.earlier) == FILES
    assert {path: sha256_file(path) for path in (tmp_path / "out").glob("model.*")} == before


def test_an_artefact_that_is_the_best_itself_is_not_written_again(
    go: Callable[..., Found], bench: type[Pretended], tmp_path: Path
) -> None:
    bench.world = World(int8_loss=0.1, prunable=False)
    found = go()
    assert found.chosen == found.parent
    assert found.path is None
    assert not list((tmp_path / "out").glob("model.*"))


@pytest.mark.parametrize("world", [World(int8_loss=0.1), World(int8_loss=0.0, int8_share=1.3)])
def test_an_int8_file_that_misses_the_goal_or_is_slower_is_no_part_of_the_artefact(
    go: Callable[..., Found], bench: type[Pretended], tmp_path: Path, world: World
) -> None:
    bench.world = world
    found = go()
    assert found.chosen is not None
    assert found.chosen.precision == "float32"
    assert found.chosen.task.importance
    assert {path.name for path in (tmp_path / "out").glob("model.*")} == {CHECKPOINT, GRAPH}


def test_files_of_beaten_candidates_are_deleted_meanwhile(
    go: Callable[..., Found], tmp_path: Path, bench: type[Pretended]
) -> None:
    bench.fail_at = 10
    with pytest.raises(KeyboardInterrupt):
        go()
    (search,) = (tmp_path / "out" / "search").iterdir()
    journal = Journal(tmp_path / "out" / CANDIDATES, search.name)
    unbeaten = {entry.task.name for entry in module.front(module.candidates(journal.records))}
    assert {place.name for place in search.iterdir()} == unbeaten | {"parent"}


def test_two_searches_do_not_share_a_folder(go: Callable[..., Found], tmp_path: Path) -> None:
    with module._alone(tmp_path / "out"), pytest.raises(ArtefactError, match="another process is optimizing"):
        go()


def test_an_artefact_is_not_overwritten(source: Path, tmp_path: Path, bench: type[Pretended]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / CHECKPOINT).write_bytes(b"precious")
    for out, words in ((source.parent, "is the artefact itself"), (other, "holds an artefact that no search made")):
        with pytest.raises(UsageError, match=words):
            optimize(source, out, OptimizeConfig(), dataset=make_dataset(), workbench=bench)
    assert (other / CHECKPOINT).read_bytes() == b"precious"


def test_few_images_are_warned_of(go: Callable[..., Found], capsys: pytest.CaptureFixture[str]) -> None:
    go()
    assert "0.5 points of 12 validation images are less than one image" in capsys.readouterr().err
    assert images_needed(0.5) == 200
    assert images_needed(3.0) == 34


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"minutes": 0.0}, "--minutes"),
        ({"importances": ()}, "--importances"),
        ({"importances": ("l3",)}, "did you mean l"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        OptimizeConfig(**changes)


def trained(config: dict[str, Any], **more: Any) -> Any:
    card = make_card(stages=("train",))
    return dataclasses.replace(
        card, lineage=(LineageEntry(stage="train", config={"fit": config, **more}, parent=None),)
    )


def test_recovery_has_the_settings_of_the_training() -> None:
    fit = FitConfig(epochs=7, lr=0.1, optimizer="sgd", batch_size=16, schedule="step", layer_decay=0.7, ema=0.9)
    plain = json.loads(json.dumps(dataclasses.asdict(fit)))
    found, most = fit_of(trained(plain))
    assert (found.lr, found.optimizer, found.batch_size, found.schedule) == (0.1, "sgd", 16, "one-cycle")
    assert (found.layer_decay, found.ema, most) == (1.0, 0.0, 7)
    adapted, _ = fit_of(trained(plain, lora={"rank": 8}))
    assert (adapted.lr, adapted.optimizer, adapted.batch_size) == (FitConfig().lr, FitConfig().optimizer, 16)
    frozen = json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(fit, freeze=Freezing(stages=1)))))
    assert fit_of(trained(frozen))[0].freeze == Freezing()
    assert fit_of(trained(frozen))[0].lr == FitConfig().lr


def test_settings_that_cannot_be_read_are_the_default_ones_and_it_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fit_of(trained({"epoch": 3})) == (FitConfig(), FitConfig().epochs)
    assert "settings cannot be read" in capsys.readouterr().err
    assert fit_of(make_card(LABELS, stages=("train",))) == (FitConfig(), FitConfig().epochs)
