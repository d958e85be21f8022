"""Tests of compress.search.stage, trials, final and figure: searches over a network that exists in numbers only."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from compress.search import stage as module
from compress.search.candidates import BF16, FLOAT, INT8, Candidate, Goal
from compress.search.stage import PICTURE, STUDY, Found, OptimizeConfig, fit_of, optimize
from compress.search.trials import Trials
from tests.compress.search.pretended import Killed, World, bench_of
from tests.zoo.factories import LABELS, make_card, make_dataset, make_input
from zoo.artefact.card import LineageEntry
from zoo.base.errors import ArtefactError, DataError, UsageError
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH
from zoo.data.dataset import Sample
from zoo.networks import checkpoint
from zoo.networks.registry import build
from zoo.networks.stages import Freezing
from zoo.training.loop.config import FitConfig

Search = Callable[..., Found]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "net" / CHECKPOINT
    card = make_card(spec=make_input(28, "L"), stages=("train",))
    checkpoint.save(build("lenet", classes=3, channels=1), card, path)
    return path


@pytest.fixture
def go(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """A search in a world, whose clock is the one that counts."""

    def search(world: World, goal: Goal | None = None, *, out: str = "out", **changes: Any) -> Found:
        dataset = changes.pop("dataset", make_dataset())
        if not changes.pop("drawn", False):
            monkeypatch.setattr(module, "draw", lambda results, goal, chosen, path, *, title: path.touch())
        config = OptimizeConfig(goal=goal or Goal(), **({"minutes": 2.5} | changes))
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: world.now))
        return optimize(source, tmp_path / out, config, dataset=dataset, workbench=bench_of(world, tmp_path))

    return search


def killed(monkeypatch: pytest.MonkeyPatch, search: Callable[[], Found]) -> None:
    """A search that is killed where its world says so: nothing is written after that."""

    def gone(*arguments: Any) -> None:
        raise Killed

    write = optuna.Trial.set_user_attr
    with monkeypatch.context() as patch:

        def unless_killed(trial: optuna.Trial, key: str, value: Any) -> None:
            if key == "seconds" and not {"measured", "reason", "given_up"} & trial.user_attrs.keys():
                gone()
            write(trial, key, value)

        patch.setattr(optuna.Trial, "set_user_attr", unless_killed)
        with pytest.raises(Killed):
            search()


def test_a_search_finds_what_its_world_has(go: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    found = go(world, Goal(max_drop=2.0), minutes=8, drawn=True)
    assert [(c.ratio, c.precision) for c in world.done[:4]] == [(1, FLOAT), (1, INT8), (1, BF16), (0.5, INT8)]
    assert len(set(world.done)) == len(world.done) > 10
    chosen = found.chosen
    assert chosen is not None
    # At the edge of 0.3, INT8: at most two points are lost, and nothing of the best is left on the table.
    assert (chosen.candidate.ratio, chosen.candidate.precision) in [(0.3, INT8), (0.35, INT8)]
    assert found.results.misses(chosen, Goal(max_drop=2.0)) == {}
    assert chosen in found.results.front()
    assert found.path == tmp_path / "out" / INT8_GRAPH
    assert (tmp_path / "out" / CHECKPOINT).read_text() == chosen.candidate.network
    assert (tmp_path / "out" / PICTURE).read_bytes()[:4] == b"\x89PNG"
    assert found.test is not None
    assert (found.test.chosen.n, found.test.agreement, found.test.difference.points) == (12, 1.0, 0.0)
    assert found.test.difference.low < 0 < found.test.difference.high
    assert "0.5 points" not in capsys.readouterr().err
    # Files of what is beaten were deleted meanwhile.
    (place,) = (tmp_path / "out" / "search").iterdir()
    unbeaten = {entry.candidate.network for entry in found.results.front()} | {"unpruned-28x28"}
    assert {path.name for path in place.iterdir()} == unbeaten


def test_hopeless_networks_are_not_recovered(go: Search) -> None:
    world = World()
    found = go(world, importances=("taylor", "fpgm"), minutes=10)
    assert found.given_up
    assert {candidate.importance for candidate, _ in found.given_up} == {"fpgm"}
    assert not {candidate for candidate, _ in found.given_up} & set(world.done)


@pytest.mark.parametrize(("minutes", "seconds", "epochs"), [(3.0, 20.0, 5.0), (5.0, 61.0, 19.0), (1.0, 7.0, 0.1)])
def test_no_trial_begins_that_would_not_finish(go: Search, minutes: float, seconds: float, epochs: float) -> None:
    world = World(seconds=seconds, epoch_seconds=epochs)
    found = go(world, minutes=minutes)
    assert found.seconds == pytest.approx(world.now)
    assert found.seconds <= 60 * minutes
    assert len(world.done) > 2
    assert max(candidate.epochs for candidate in world.done) * epochs <= max(epochs, 0.2 * 60 * minutes)


def test_however_little_time_there_is_the_artefact_itself_is_measured(go: Search, tmp_path: Path) -> None:
    world = World()
    found = go(world, minutes=0.001)
    assert world.done == [Candidate(size=(28, 28))]
    assert found.chosen == found.results.parent
    assert found.path is None
    assert not list((tmp_path / "out").glob("model.*"))


@pytest.mark.parametrize(("at", "how"), [(0, Killed), (8, Killed), (3, KeyboardInterrupt)])
def test_a_search_that_was_stopped_anywhere_goes_on(
    go: Search,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at: int,
    how: type[BaseException],
) -> None:
    # The clock stands still, so that time has no part in what is drawn.
    whole, world = World(seconds=1.0, epoch_seconds=0.0), World(seconds=1.0, epoch_seconds=0.0, stop={at: how})
    goal = Goal(max_drop=1.0)
    whole_found = go(whole, goal, minutes=0.4, out="whole")
    if how is Killed:
        killed(monkeypatch, lambda: go(world, goal, minutes=0.4))
    else:
        with pytest.raises(KeyboardInterrupt):
            go(world, goal, minutes=0.4)
        assert ("best so far: " in capsys.readouterr().err) == (at > 0)
    found = go(world, goal, minutes=0.4)
    # The same in the same order, as far as time goes: none twice, none left out.
    assert world.done[: len(whole.done)] == whole.done[: len(world.done)]
    assert len(world.done) >= at + 1
    if how is KeyboardInterrupt:
        assert found.seconds == pytest.approx(world.now)
    assert whole_found.chosen is not None
    assert found.chosen is not None


def test_the_time_of_a_killed_trial_counts(go: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(stop={1: Killed})
    killed(monkeypatch, lambda: go(world))
    (trial,) = [t for t in study_of(tmp_path / "out").all if t.state == optuna.trial.TrialState.RUNNING]
    assert trial.datetime_start is not None
    sign = next((tmp_path / "out" / "search").rglob(GRAPH))
    alive = trial.datetime_start.timestamp() + 50
    os.utime(sign, (alive, alive))
    found = go(world)
    assert found.seconds == pytest.approx(world.now - 7 + 50, abs=1)


def test_what_was_measured_just_before_a_kill_is_not_lost(
    go: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    with monkeypatch.context() as patch:

        def gone(*arguments: Any) -> None:
            raise Killed

        patch.setattr(Trials, "end", gone)
        with pytest.raises(Killed):
            go(world)
    go(world)
    assert world.done.count(Candidate(size=(28, 28))) == 1


def test_what_kills_the_process_each_time_is_left_out(go: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    for _ in range(3):
        world.stop = {1: Killed}
        killed(monkeypatch, lambda: go(world))
    found = go(world)
    assert Candidate(size=(28, 28), precision=INT8) not in world.done
    assert found.chosen is not None


def test_the_test_split_is_read_once_and_after_the_choice(
    go: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset()
    gone = [dataclasses.replace(sample, source=Path("/gone.png")) for sample in dataset.splits["test"]]
    unreadable = dataclasses.replace(dataset, splits={**dataset.splits, "test": gone})
    world = World()
    with pytest.raises(DataError, match=r"gone\.png"):
        go(world, dataset=unreadable)
    assert (tmp_path / "out" / INT8_GRAPH).is_file()
    first = go(world)
    done = list(world.done)
    read: list[str] = []
    monkeypatch.setattr(Sample, "read", lambda sample: read.append(sample.name))
    second = go(world)
    assert (read, world.done) == ([], done)
    assert second == first


@pytest.mark.parametrize("missing", [CHECKPOINT, INT8_GRAPH])
def test_a_killed_copy_is_completed(go: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    world, replace = World(), Path.replace

    def stopped(self: Path, target: Path) -> Path:
        if Path(target) == tmp_path / "out" / missing:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            go(world)
    done = list(world.done)
    found = go(world)
    assert world.done == done
    assert {path.name for path in (tmp_path / "out").glob("model.*")} == {CHECKPOINT, GRAPH, INT8_GRAPH}
    assert found.chosen is not None


def test_another_goal_goes_on_from_what_is_known(go: Search, tmp_path: Path) -> None:
    world = World()
    go(world)
    done = len(world.done)
    found = go(world, Goal(max_drop=100, megabytes=100.0, latency_ms=4.5))
    assert found.chosen is not None
    assert len(world.done) == done
    assert found.results.ms(found.chosen) <= 4.5
    assert (tmp_path / "out" / CHECKPOINT).read_text() == found.chosen.candidate.network


def test_another_seed_or_engine_is_another_search(go: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    for _ in range(2):
        go(world, minutes=0.01)
    assert len(world.done) == 1
    go(world, minutes=0.01, seed=1)
    monkeypatch.setenv("POCKETZOO_ENGINE", "auto")
    go(world, minutes=0.01)
    assert len(world.done) == 3


def test_a_goal_that_nothing_meets_writes_nothing_and_says_what_would(go: Search, tmp_path: Path) -> None:
    goal = Goal(max_drop=0.5, latency_ms=0.1)
    found = go(World(), goal, minutes=2)
    assert (found.chosen, found.path, found.test, found.earlier) == (None, None, None, ())
    assert "the nearest would with --" in found.advice(goal)
    assert found.picture.is_file()
    kept = go(World(), minutes=2)
    assert kept.path is not None
    assert go(World(), goal, minutes=2).earlier == (CHECKPOINT, GRAPH, INT8_GRAPH)


def test_files_of_another_precision_do_not_stay(go: Search, tmp_path: Path) -> None:
    assert go(World()).path == tmp_path / "out" / INT8_GRAPH
    (tmp_path / "out" / "quantize.json").write_text("{}")
    found = go(World(precisions=(FLOAT,)), Goal(max_drop=2.0), seed=6)
    assert found.path == tmp_path / "out" / GRAPH
    assert {path.name for path in (tmp_path / "out").glob("model.*")} == {CHECKPOINT, GRAPH}
    assert not (tmp_path / "out" / "quantize.json").exists()


@pytest.mark.parametrize(
    ("world", "changes", "forbidden"),
    [
        (World(refusal="grouped"), {}, lambda c: c.importance),
        (World(sizes={1.0: (28, 28)}), {}, lambda c: c.size != (28, 28)),
        (World(), {"resize": False}, lambda c: c.size != (28, 28)),
        (World(), {"recover": False}, lambda c: c.epochs),
        (World(precisions=(FLOAT, INT8)), {}, lambda c: c.precision == BF16),
        (World(), {"importances": ("l1",)}, lambda c: c.importance not in ("", "l1")),
    ],
)
def test_what_is_not_possible_or_wanted_is_not_tried(
    go: Search, world: World, changes: dict[str, Any], forbidden: Callable[[Candidate], bool]
) -> None:
    go(world, minutes=2, **changes)
    assert len(world.done) > 2
    assert not [candidate for candidate in world.done if forbidden(candidate)]


def test_what_cannot_be_made_is_told_and_not_tried_again(go: Search) -> None:
    world = World(fails=INT8)
    found = go(world, minutes=2)
    assert {reason for _, reason in found.failed} == {"cannot be made"}
    assert len(set(world.done)) == len(world.done)
    with pytest.raises(UsageError, match="cannot be made"):
        go(World(fails=FLOAT), seed=3)


def test_two_searches_do_not_share_a_folder(go: Search, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with module._alone(tmp_path / "out"), pytest.raises(ArtefactError, match="another process is optimizing"):
        go(World())


def test_an_artefact_is_not_overwritten(go: Search, source: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / CHECKPOINT).write_bytes(b"precious")
    for out, words in (("net", "is the artefact itself"), ("other", "holds an artefact that no search made")):
        with pytest.raises(UsageError, match=words):
            go(World(), out=out)
    assert (tmp_path / "other" / CHECKPOINT).read_bytes() == b"precious"


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + bytes(200)])
def test_a_broken_database_is_a_sentence(go: Search, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / STUDY).write_bytes(content)
    with pytest.raises(ArtefactError, match=r"search\.db: not the database of a search .* remove it to begin anew"):
        go(World())


def test_few_images_are_warned_of(go: Search, capsys: pytest.CaptureFixture[str]) -> None:
    go(World(), minutes=0.01)
    assert "0.5 points of 12 validation images are less than one image" in (err := capsys.readouterr().err)
    assert "from 200 images on" in err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"minutes": 0.0}, "--minutes"),
        ({"minutes": float("inf")}, "--minutes"),
        ({"importances": ()}, "--importances"),
        ({"importances": ("l3",)}, "did you mean l"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        OptimizeConfig(**changes)


def study_of(out: Path) -> Trials:
    (place,) = (out / "search").iterdir()
    return Trials(out / STUDY, place.name)


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
