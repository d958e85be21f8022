"""Contestants' lines become curves, failures are counted, and every row is complete."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bench.rows import RACE, append, read
from bench.training import race
from bench.training.contestants import CONTESTANTS, OURS, fine_tune_settings
from bench.training.race import RaceConfig, run_race
from bench.training.race_results import draw_race, level_of, markdown, moment_of, reached, render, top1_at
from bench.training.racer import Job, Ran
from bench.training.racer import race as run_one
from tests.conftest import run_cli
from tests.zoo.factories import encode, picture
from zoo.base.errors import PocketzooError, UsageError
from zoo.base.machine import allocator_variables
from zoo.data.catalogue import open_dataset
from zoo.data.dataset import Dataset

TIMM_SAYS = (
    "Test: [   0/2]  Time: 0.2 (0.2)  Loss:   4.1 ( 4.1)  Acc@1:  12.500 ( 12.500)  Acc@5: 50.000 ( 50.000)",
    "Test: [   2/2]  Time: 0.1 (0.2)  Loss:   4.0 ( 4.2)  Acc@1:   0.000 ( 25.000)  Acc@5: 50.000 ( 50.000)",
    "Train: 1 [   3/3 (100%)]  Loss: 3.00 (3.13)  Time: 3.791s,    2.11/s",
    "Test: [  20/20]  Time: 0.1 (0.2)  Loss:   4.0 ( 4.2)  Acc@1: 100.000 (100.000)  Acc@5: 100.000 (100.000)",
    "*** Best metric: 100.0 (epoch 1)",
)
OURS_SAYS = (
    "a-b: an epoch takes 1.0 s, so train.epochs = 2 fits into 1 minutes",
    "a-b epoch 1/2: loss 2.337, validation top-1 25.00%, 0.0 s",
    "a-b epoch 2/2: loss 1.337, validation top-1 100.00%, 0.0 s",
    "output/a-b/model.safetensors: validation top-1 75.00% (n = 4), 0.5 MMACs, 0.12 MB",
)
FASTAI_SAYS = ("epoch 1: validation top-1 25.000000%", "epoch 2: validation top-1 100.000000%")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, eight training and four validation images each; one has a name that timm would pass over."""
    number = 0
    for split, count in (("train", 8), ("val", 4), ("test", 1)):
        for label in ("ant", "bee"):
            for index in range(count):
                suffix = "bmp" if (split, label, index) == ("train", "ant", 0) else "jpg"
                path = tmp_path / "pictures" / split / label / f"{index}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                number += 1
                path.write_bytes(encode(picture(number, 40, 48), kind="BMP" if suffix == "bmp" else "JPEG"))
    return tmp_path / "pictures"


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return open_dataset(str(folder))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text("")
    return path


def fake(answers: Mapping[str, Any], seen: list[tuple[Job, Mapping[str, str | None]]]) -> Any:
    """Instead of processes: by contestant a function of its job."""

    def alternate(
        commands: Mapping[str, Sequence[str]], rounds: int, environments: Mapping[str, Mapping[str, str | None]]
    ) -> Iterator[tuple[str, int, dict[str, Any]]]:
        assert rounds == 1
        for name, (flag, module, text) in commands.items():
            assert (flag, module) == ("-m", "bench.training.racer")
            job = Job(**json.loads(text))
            seen.append((job, environments[name]))
            yield name, 0, dataclasses.asdict(answers[job.contestant](job))

    return alternate


def ran(*curve: tuple[float, float], failed: str | None = None) -> Ran:
    seconds = curve[-1][0] + 1 if curve else 1.0
    ended = list(range(1, len(curve) + 1))
    return Ran(
        curve=list(curve),
        ended=ended,
        seconds=seconds,
        user_seconds=3.0,
        system_seconds=1.0,
        peak_mb=100.0,
        failed=failed,
    )


@pytest.mark.parametrize(("contestant", "lines"), [(OURS, OURS_SAYS), ("timm", TIMM_SAYS), ("fastai", FASTAI_SAYS)])
def test_lines_become_a_curve(tmp_path: Path, contestant: str, lines: Sequence[str]) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"import time\nfor line in {lines!r}:\n    time.sleep(0.05)\n    print(line, flush=True)\n")
    answer = run_one(Job(contestant=contestant, arguments=[str(program)]))
    assert answer.failed is None
    assert [top1 for _, top1 in answer.curve] == [25, 100]
    first, last = (seconds for seconds, _ in answer.curve)
    assert 0.05 < first < last - 0.04 < answer.seconds
    assert answer.user_seconds > 0


def test_what_a_process_used_is_that_of_its_children_too(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import subprocess, sys\n"
        "spin = 'import time\\nkept = bytes(range(256)) * 400_000\\nend = time.process_time() + 1.5\\n"
        "while time.process_time() < end: pass'\n"
        "subprocess.run([sys.executable, '-c', spin], check=True)\n"
        "print('epoch 1: validation top-1 50.000000%')\n"
    )
    answer = run_one(Job(contestant="fastai", arguments=[str(program)]))
    assert answer.user_seconds + answer.system_seconds >= 1.5
    assert answer.peak_mb > 100


def test_a_contestant_that_fails_says_why(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("raise SystemExit('no such weights')")
    assert run_one(Job(contestant="timm", arguments=[str(program)])).failed == ("exit status 1: no such weights")
    program.write_text("print('nothing')")
    assert run_one(Job(contestant="timm", arguments=[str(program)])).failed == "it reported no epoch: nothing"


def test_rows_of_a_race(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    folder: Path,
    dataset: Dataset,
    script: Path,
) -> None:
    seen: list[tuple[Job, Mapping[str, str | None]]] = []
    monkeypatch.setattr(race.importlib.util, "find_spec", lambda name: object())
    answers = {
        OURS: lambda job: ran((10.0, 50.0), (12.0, 87.5), (14.0, 75.0)),
        "timm": lambda job: ran((20.0, 12.5), (30.0, 75.0)),
        "fastai": lambda job: ran(failed="exit status 1: no"),
    }
    monkeypatch.setattr(race, "alternate", fake(answers, seen))
    config = RaceConfig(
        model="resnet10t",
        weights=str(tmp_path / "first.pt"),
        epochs={"timm": 2, "fastai": 3},
        size=32,
        threads=3,
        rounds=2,
        timm_train=script,
        timm_args="--lr 5e-4",
    )
    torch.save(race.build("resnet10t", classes=7, channels=3).state_dict(), tmp_path / "first.pt")
    rows = list(run_race(dataset, str(folder), config))
    assert [(row["contestant"], row["round"], row["seed"]) for row in rows] == [
        (OURS, 0, 0),
        ("timm", 0, 0),
        (OURS, 1, 1),
        ("timm", 1, 1),
    ]
    assert [job.contestant for job, _ in seen] == [OURS, "timm", "fastai"] * 2
    append(tmp_path / RACE, rows)
    assert read(tmp_path / RACE) == rows
    ours, timm = rows[:2]
    assert ours["curve"] == [[10.0, 0.5], [12.0, 0.875], [14.0, 0.75]]
    assert (ours["top1"], ours["best_top1"], ours["n"], ours["validation_n"]) == (0.75, 0.875, 16, 8)
    assert (ours["low"], ours["high"]) == pytest.approx((0.4093, 0.9285), abs=1e-4)  # Wilson's, of 6 in 8
    assert (ours["images_per_s"], timm["images_per_s"]) == (8.0, 1.6)
    assert str(tmp_path) not in json.dumps(rows)
    assert timm["settings"][-2:] == ["--lr", "5e-4"]
    said = capsys.readouterr().err
    assert "fastai (round 2) failed: exit status 1: no" in said
    assert "2 left out or failed, 4 came to the end" in said

    assert moment_of(rows[:2]) == 14
    assert (top1_at(timm, 25), top1_at(timm, 14)) == (0.125, None)
    assert level_of(rows) == 0.75
    assert (reached(ours, 0.75), reached(timm, 0.75), reached(timm, 0.8)) == (12, 30, None)
    assert render(rows).row_count == 4
    assert (
        markdown(rows).splitlines()[2].startswith("| pictures, 32 px | pocketzoo | 3 | 75.0 (40.9-92.9) | 14 | 87.5 |")
    )
    draw_race(rows, tmp_path / "race.png")
    assert (tmp_path / "race.png").stat().st_size > 10_000


def test_all_start_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path, dataset: Dataset, script: Path
) -> None:
    first = race.build("resnet10t", classes=7, channels=3).state_dict()
    torch.save(first, tmp_path / "first.pt")
    seen: list[tuple[Job, Mapping[str, str | None]]] = []
    files: list[list[str]] = []

    def look(job: Job) -> Ran:
        root = Path(job.arguments[job.arguments.index("--data-dir") + 1])
        files.append(
            sorted(f"{path.parent.parent.name}/{path.parent.name}/{path.suffix}" for path in root.rglob("*.*g"))
        )
        begun = load_file(job.arguments[job.arguments.index("--pretrained-path") + 1])
        assert torch.equal(begun["conv1.0.weight"], first["conv1.0.weight"])
        assert begun["fc.weight"].shape == (2, 512)
        return ran((1.0, 50.0))

    monkeypatch.setattr(race, "alternate", fake({"timm": look, OURS: lambda job: ran((1.0, 50.0))}, seen))
    common: dict[str, Any] = {"model": "resnet10t", "weights": str(tmp_path / "first.pt"), "timm_train": script}
    for allocator in race.ALLOCATORS:
        config = RaceConfig(**common, allocator=allocator, epochs={"timm": 1}, without=("fastai",), threads=3)
        assert len(list(run_race(dataset, str(folder), config))) == 2
    names = [f"{split}/{label:05d}/.jpg" for split in ("train", "validation") for label in (0, 1)]
    assert files == [[name for name in names for _ in range(8 if "train" in name else 4)]] * 2
    ours, timm = seen[0][0].arguments, seen[1][0].arguments
    assert ours[ours.index("--weights") + 1] == timm[timm.index("--pretrained-path") + 1]
    assert [variables["OMP_NUM_THREADS"] for _, variables in seen] == ["3"] * 4
    for kept, (_, variables) in zip((True, True, False, False), seen, strict=True):
        assert allocator_variables(kept=kept).items() <= variables.items()


def test_minutes_plan_the_epochs_of_peers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path, dataset: Dataset, script: Path
) -> None:
    torch.save(race.build("resnet10t", classes=7, channels=3).state_dict(), tmp_path / "first.pt")
    seen: list[tuple[Job, Mapping[str, str | None]]] = []
    answers = {OURS: lambda job: ran((1.0, 50.0)), "timm": lambda job: ran((25.0, 50.0), (35.0, 50.0))}
    monkeypatch.setattr(race, "alternate", fake(answers, seen))
    common: dict[str, Any] = {"model": "resnet10t", "weights": str(tmp_path / "first.pt"), "without": ("fastai",)}
    rows = list(run_race(dataset, str(folder), RaceConfig(**common, timm_train=script, minutes=1)))
    pilot, ours, timm = (job for job, _ in seen)
    assert pilot.contestant == "timm"
    assert pilot.arguments[pilot.arguments.index("--epochs") + 1] == "2"
    assert timm.arguments[timm.arguments.index("--epochs") + 1] == "4"  # the first ends after 25 s, three more by 60
    assert ours.arguments[ours.arguments.index("--minutes") + 1] == "1"
    assert moment_of(rows) == 60

    monkeypatch.setattr(race, "alternate", fake(answers | {"timm": lambda job: ran(failed="no")}, []))
    assert [
        row["contestant"] for row in run_race(dataset, str(folder), RaceConfig(**common, timm_train=script, minutes=1))
    ] == [OURS]
    monkeypatch.setattr(race, "alternate", fake({OURS: lambda job: ran(failed="exit status 1: no")}, []))
    with pytest.raises(PocketzooError, match=r"no contestant came to the end: timm is left out: .*; pocketzoo"):
        list(run_race(dataset, str(folder), RaceConfig(**common)))


def test_wrong_usage(dataset: Dataset, folder: Path, script: Path) -> None:
    with pytest.raises(UsageError, match="unknown contestant 'tim'; did you mean timm"):
        RaceConfig(epochs={"tim": 2})
    with pytest.raises(UsageError, match="unknown allocator 'keep'"):
        RaceConfig(allocator="keep")
    with pytest.raises(UsageError, match=r"no-train\.py: no such file; name train\.py of a checkout"):
        RaceConfig(timm_train=Path("no-train.py"))
    with pytest.raises(UsageError, match="--model lenet: the peers only know timm's networks"):
        RaceConfig(model="lenet")
    with pytest.raises(UsageError, match="--fastai-args 'base_lr': expected NAME=NUMBER"):
        RaceConfig(fastai_args="base_lr")
    with pytest.raises(UsageError, match=r"how long does timm train\? Give --minutes, or --epochs timm=NUMBER"):
        list(run_race(dataset, str(folder), RaceConfig(timm_train=script, without=("fastai",))))
    assert fine_tune_settings("base_lr=0.004 freeze_epochs=2") == {"base_lr": 0.004, "freeze_epochs": 2}
    assert tuple(CONTESTANTS) == (OURS, "timm", "fastai")


def test_ours_races_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))
    words = ["--image-size", "32", "--epochs", "pocketzoo=2", "--batch", "8", "--threads", "1", "--without", "fastai"]
    done = run_cli("bench", "race", str(folder), *words)
    assert "timm is left out: --timm-train PATH" in done.stderr
    assert "1 left out or failed, 1 came to the end" in done.stderr
    (row,) = read(tmp_path / "output" / "bench" / RACE)
    assert (row["contestant"], row["epochs"], row["n"], row["validation_n"]) == (OURS, 2, 16, 8)
    assert 0 < row["curve"][0][0] < row["curve"][1][0] < row["seconds"]
    assert all((top1 * 8).is_integer() for _, top1 in row["curve"])
    assert row["user_seconds"] > 0
    assert row["peak_mb"] > 100
    assert {path.name for path in (tmp_path / "output").iterdir()} <= {"bench", ".index"}
    assert (tmp_path / "output" / "bench" / "race.png").is_file()
