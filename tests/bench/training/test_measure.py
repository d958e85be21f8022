"""Every variant trains; rows are complete, and ratios are of the medians."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.rows import TRAINING, append, read
from bench.training import measure as training
from bench.training.measure import PARTS, TrainingConfig, markdown, measure_training, render
from bench.training.worker import VARIANTS, Job, Measured, measure
from tests.conftest import run_cli
from tests.zoo.factories import encode, make_dataset, picture
from zoo.base.errors import UsageError

COUNTS = {"train": 9, "validation": 4}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What a measuring process sets for itself."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine training images: two batches of four, and one left over."""
    for split, count in COUNTS.items():
        for index in range(count):
            path = tmp_path / split / f"class{index % 2}" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(index, 40, 48), kind="JPEG"))
    return tmp_path


def fake(seconds: Mapping[str, Sequence[float]]) -> Any:
    """Instead of processes: the given seconds for each variant, one per round."""

    def alternate(
        commands: Mapping[str, Sequence[str]], rounds: int, environments: Mapping[str, Mapping[str, str | None]]
    ) -> Iterator[tuple[str, int, dict[str, Any]]]:
        for name, variables in environments.items():
            kept = name.split(" ")[1] not in ("timm", "timm-channels-last", "timm-bf16")
            assert (variables["MALLOC_TRIM_THRESHOLD_"] is not None) == kept
        for number in range(rounds):
            for name, (flag, module, job) in commands.items():
                assert (flag, module) == ("-m", "bench.training.worker")
                took = seconds[Job(**json.loads(job)).variant][number]
                measured = Measured(
                    setup_seconds=1.0, seconds=took, images=10, user_seconds=took, system_seconds=took / 4
                )
                yield name, number, dataclasses.asdict(measured)

    return alternate


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_trains_every_image_in_every_epoch(folder: Path, variant: str) -> None:
    job = Job(variant=variant, model="resnet10t", folder=str(folder), size=32, batch=4, epochs=2, threads=1)
    found = measure(job)
    # All leave out a last batch that is too small for BatchNorm; an evaluation reads both splits once.
    assert found.images == (sum(COUNTS.values()) if variant == "evaluation" else 2 * 8)
    assert found.seconds > 0
    assert found.setup_seconds > 0
    assert found.user_seconds > 0
    assert found.system_seconds >= 0


def test_what_loaders_compute_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loading(*_: object) -> Measured:
        done = subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"], check=True)
        assert done.returncode == 0
        return Measured(setup_seconds=1, seconds=1, images=1)

    monkeypatch.setitem(VARIANTS, "timm", loading)
    job = Job(variant="timm", model="resnet10t", folder=str(folder), size=32, batch=4, epochs=1, threads=1)
    found = measure(job)
    assert found.user_seconds + found.system_seconds > 0.9


def test_the_variants_are_those_that_are_compared() -> None:
    assert set(VARIANTS) == {name for names in PARTS.values() for name in names}


def test_rows_are_medians_and_ratios(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seconds = {"timm": (9.0, 19.0, 99.0), "pocketzoo": (1.0, 9.0, 4.0), "evaluation": (2.0,) * 3, "head": (3.0,) * 3}
    seconds["timm-allocator"] = (3.0, 19.0, 24.0)
    monkeypatch.setattr(training, "alternate", fake(seconds))
    config = TrainingConfig(models=("a", "b"), variants=("pocketzoo",), threads=1)
    rows = measure_training(make_dataset(), config)
    assert [(row["model"], row["variant"]) for row in rows] == [
        (model, variant) for model in ("a", "b") for variant in ("timm", "pocketzoo")
    ]
    assert [row["ratio"] for row in rows] == [1, 0.2] * 2  # of 2 / 10, 10 / 20 and 5 / 100 s the median
    assert [row["seconds"] for row in rows] == [19, 4] * 2
    assert rows[0]["images_per_s"] == 0.5
    assert rows[0]["round_seconds"] == [9.0, 19.0, 99.0]
    assert (rows[0]["n"], rows[0]["validation_n"], rows[0]["epochs"]) == (12, 12, 2)
    assert len({row["run"] for row in rows}) == 1
    assert rows[0]["environment"]["versions"]["torch"] == torch.__version__.split("+")[0]
    append(tmp_path / TRAINING, rows)
    assert read(tmp_path / TRAINING) == rows
    assert render(rows).row_count == 4
    assert {row["ratio_kept"] for row in rows} == {None}

    config = TrainingConfig(models=("a",), variants=("timm-allocator", "pocketzoo"), size=(24, 32))
    rows = measure_training(make_dataset(), config)
    assert [row["ratio_kept"] for row in rows] == [2.5, 1, 0.5]  # of 10 / 4, 20 / 20 and 100 / 25 s the median
    assert [(row["user_seconds"], row["system_seconds"]) for row in rows] == [(19, 4.75), (19, 4.75), (4, 1)]
    *_, timm, kept, ours = markdown(rows).splitlines()
    assert timm == "| a, 24 x 32 px | timm | 0.5 | 1.00x | 0.40x | 24 | 20.0 |"
    assert kept == "| a, 24 x 32 px | timm-allocator | 0.5 | 2.50x | 1.00x | 24 | 20.0 |"
    assert ours == "| a, 24 x 32 px | pocketzoo | 2.0 | 5.00x | 2.00x | 5 | 20.0 |"

    head = measure_training(make_dataset(), TrainingConfig(part="head", models=("a",)))
    assert [(row["variant"], row["ratio"], row["epochs"]) for row in head] == [("evaluation", 1, 50), ("head", 1.5, 50)]


def test_all_variants_read_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def alternate(
        commands: Mapping[str, Sequence[str]], rounds: int, environments: object
    ) -> Iterator[tuple[str, int, dict[str, Any]]]:
        for name, arguments in commands.items():
            root = Path(json.loads(arguments[-1])["folder"])
            seen.append(sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in root.rglob("*.png")))
            yield name, 0, dataclasses.asdict(Measured(setup_seconds=0.0, seconds=1.0, images=1))

    monkeypatch.setattr(training, "alternate", alternate)
    rows = measure_training(make_dataset(), TrainingConfig(models=("a",), images=8, rounds=1))
    assert len(rows) == len(seen) == 6
    expected = (
        ["train/00000"] * 3 + ["train/00001"] * 3 + ["train/00002"] * 2 + ["validation/00000", "validation/00001"]
    )
    assert all(names == expected for names in seen)


def test_wrong_usage() -> None:
    with pytest.raises(UsageError, match="unknown part 'heads'; did you mean head"):
        TrainingConfig(part="heads")
    with pytest.raises(UsageError, match="unknown variant of the part 'full' 'tim'; did you mean timm"):
        TrainingConfig(variants=("tim",))
    with pytest.raises(UsageError, match="--batch must be at least 2, got 1"):
        TrainingConfig(batch=1)
    with pytest.raises(UsageError, match="--images 13: expected 13 images for train, tiny has 12"):
        measure_training(make_dataset(), TrainingConfig(images=13))


def test_the_command_prints_a_table_and_keeps_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setattr(training, "alternate", fake({"timm": (2.0,), "pocketzoo": (1.0,)}))
    options = ("--data", "digits", "--model", "resnet10t", "--variant", "pocketzoo", "--images", "20", "--rounds", "1")
    text = run_cli("bench", "training", *options).output
    assert "resnet10t" in text
    assert "0.667" in text
    lines = run_cli("bench", "training", *options, "--json").output.splitlines()
    assert [json.loads(line)["variant"] for line in lines] == ["timm", "pocketzoo"]
    assert len(read(tmp_path / "output" / "bench" / TRAINING)) == 4
