"""Comparisons: which artefacts belong together, what is left out and why, complete rows, ratios and tables."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from bench.rows import COMPARE, append, read
from bench.runtimes import compare as peers
from bench.runtimes.baselines import PEERS
from bench.runtimes.compare import CompareConfig, compare
from bench.runtimes.families import families
from bench.runtimes.measuring_process import Job
from tests.bench.artefacts import exported, family, quantized, rewrite
from tests.bench.processes import Processes
from tests.conftest import run_cli
from tests.zoo.factories import encode, make_dataset, make_samples, picture
from zoo.artefact.latency import LatencyConfig
from zoo.artefact.onnx_file import read_card
from zoo.base.errors import ArtefactError, PocketzooError, UsageError
from zoo.base.files import sha256_file
from zoo.data.image_set import ImageSet, labelled

DATASET = make_dataset(12)
CONFIG = CompareConfig(latency=LatencyConfig(rounds=2, threads=1))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Processes:
    found = Processes()
    monkeypatch.setattr(peers, "alternate", found)
    monkeypatch.setattr(peers, "_absent", lambda name: None)
    able = dataclasses.replace(PEERS["openvino-bf16"], obstacle=lambda: "")
    monkeypatch.setitem(PEERS, "openvino-bf16", able)
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))
    return found


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return family(tmp_path / "output")


def test_families_bring_the_parent_along(files: dict[str, Path], processes: Processes) -> None:
    names = [("cat", "parent"), ("cat-pruned", "pruned")]
    whole, small = files["parent"].parent, files["pruned"].parent
    for asked in ([small], [whole, small], [small, whole, small], [files["both"]]):
        (found,) = families(asked)
        assert [(network.name, network.form) for network in found] == names
    assert [[network.name for network in found] for found in families([whole])] == [["cat"]]
    with pytest.raises(ArtefactError, match="no ONNX file at"):
        families([whole / "nothing"])


def test_a_pruned_network_whose_parent_is_gone(
    files: dict[str, Path], processes: Processes, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert [len(found) for found in families([files["pruned"].parent])] == [2]
    assert capsys.readouterr().err == ""
    for path in files["parent"].parent.iterdir():
        path.unlink()
    (found,) = families([files["pruned"].parent])
    assert [(network.name, network.form) for network in found] == [("cat-pruned", "pruned")]
    assert "cat-pruned: what it was pruned from is not exported under" in capsys.readouterr().err
    rows = compare(found, CONFIG, calibration=make_samples(3))
    append(tmp_path / COMPARE, rows)
    assert {(row["form"], row["family"], row["reference"], row["ratio"]) for row in rows} == {
        ("pruned", "cat-pruned", None, None)
    }


def test_files_are_identified_before_they_are_measured(files: dict[str, Path], processes: Processes) -> None:
    before, original = sha256_file(files["parent"]), processes.time

    def time(job: Job, number: int) -> dict[str, Any]:
        files["parent"].write_bytes(b"another one")
        return original(job, number)

    processes.time = time  # type: ignore[method-assign]
    config = CompareConfig(peers=("ort",), latency=LatencyConfig(rounds=1, threads=1))
    pictures = ImageSet(name="mine", samples=make_samples(2))
    rows = compare(families([files["parent"]])[0], config, pictures=pictures)
    assert rows[0]["file"] == "model.onnx"
    assert rows[0]["digest"] == before


def test_rows_are_complete_and_processes_take_turns(
    files: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    (found,) = families([files["pruned"].parent])
    rows = compare(found, CONFIG, calibration=make_samples(3))
    variants = [name for name in PEERS if name != "torch-compile"]
    assert [(row["artefact"], row["variant"]) for row in rows] == [
        (name, variant) for name in ("cat", "cat-pruned") for variant in variants
    ]
    append(tmp_path / COMPARE, rows)
    assert processes.rounds == [
        f"{number} {name} {variant}" for number in (0, 1) for name in ("cat", "cat-pruned") for variant in variants
    ]
    first, last = rows[0], rows[-1]
    assert (first["family"], first["form"], first["macs"], first["file"]) == (
        "cat",
        "parent",
        4_000_000,
        "model.safetensors",
    )
    assert (last["form"], last["macs"], last["file"], last["precision"]) == (
        "pruned",
        2_000_000,
        "model.int8.onnx",
        "int8",
    )
    assert (last["round_ms"], last["n"], last["p50_ms"], last["p95_ms"]) == ((2.0, 4.0), 6, 3.0, 10.5)
    assert (first["difference"], last["difference"]) == (0.0, 0.25)
    assert first["environment"]["provider"] == "CPUExecutionProvider"
    assert {"torch", "timm", "onnxruntime"} <= set(first["environment"]["versions"])
    assert (first["top1"], first["agreement"], first["pictures"]) == (None, None, None)


def test_calibration_and_settings_reach_the_process(files: dict[str, Path], processes: Processes) -> None:
    seen = []
    original = processes.prepare

    def prepare(job: Job, number: int) -> dict[str, Any]:
        seen.append([path.read_bytes() for path in sorted(Path(job.pictures).iterdir())])
        return original(job, number)

    processes.prepare = prepare  # type: ignore[method-assign]
    samples = make_samples(12)
    config = CompareConfig(peers=("ort",), latency=LatencyConfig(rounds=1, threads=3, batch=4, seconds=0.2, warmup=7))
    compare(families([files["parent"]])[0], config, calibration=samples)
    assert seen[0] == [sample.read() for sample in samples]
    job = processes.jobs[-1]
    assert (job.action, job.threads, job.batch, job.seconds, job.warmup) == ("time", 3, 4, 0.2, 7)
    assert {job.peer for job in processes.jobs} == {"ort", "ort-again", "pocketzoo", "pocketzoo-int8"}


def test_accuracy_of_every_variant(files: dict[str, Path], processes: Processes) -> None:
    rows = compare(
        families([files["parent"]])[0], CONFIG, calibration=make_samples(3), pictures=labelled(DATASET, "validation")
    )
    for row in rows:
        share = 8 / 12 if row["precision"] == "int8" else 1.0
        assert (row["top1"], row["agreement"]) == (pytest.approx(share), pytest.approx(share))
        assert (row["dataset"], row["split"], row["pictures"]) == ("tiny", "validation", 12)
        assert row["low"] < row["top1"] <= row["high"]


def test_agreement_alone_without_labels(files: dict[str, Path], processes: Processes) -> None:
    pictures = ImageSet(name="mine", samples=make_samples(6))
    rows = compare(families([files["parent"]])[0], CONFIG, calibration=make_samples(3), pictures=pictures)
    assert [(row["top1"], row["agreement"], row["split"], row["pictures"]) for row in rows[-2:]] == [
        (None, 1.0, None, 6),
        (None, pytest.approx(4 / 6), None, 6),
    ]


def test_what_is_left_out_is_said(
    files: dict[str, Path], processes: Processes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_absent", lambda name: "nncf" if name == "openvino-int8" else None)
    assert CONFIG.absent == {"openvino-int8": "nncf is not installed; pip install '.[peers]'"}
    exported(files["parent"].with_name("model.safetensors"), seed=9)  # the INT8 file is of the graph before
    (files["pruned"].with_name("model.safetensors")).unlink()
    processes.fail |= {"openvino", "openvino-bf16"}
    (network,) = families([files["parent"].parent])[0]
    rows = compare([network], CONFIG)
    assert [row["variant"] for row in rows] == ["torch", "torch-channels-last", "ort", "ort-again", "pocketzoo"]
    said = capsys.readouterr().err
    assert (
        "cat: ort-defaults-int8 is left out: there are no images to calibrate it with; add --calibrate FOLDER" in said
    )
    assert "cat: pocketzoo-int8 is left out: " in said
    assert "was not made from the model.onnx beside it; make it again" in said
    assert "openvino is left out: measuring" in said
    assert "no such kernel" in said
    lonely = dataclasses.replace(network, folder=files["pruned"].parent, card=read_card(files["pruned"]))
    compare([lonely], CONFIG)
    assert "cat-pruned: torch is left out: there is no" in capsys.readouterr().err


def test_an_int8_file_that_was_never_made_is_no_news(
    files: dict[str, Path], processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    files["int8"].unlink()
    rows = compare(families([files["parent"]])[0], CompareConfig(peers=("torch",)), calibration=make_samples(1))
    assert [row["variant"] for row in rows] == ["torch", "ort", "ort-again", "pocketzoo"]
    assert capsys.readouterr().err == ""


def test_a_checkpoint_of_another_training_is_left_out(
    files: dict[str, Path], processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(files["parent"].with_name("model.safetensors"))  # another digest, the same lineage
    config = CompareConfig(peers=("torch",))
    assert len(compare(families([files["parent"]])[0], config)) == 5
    quantized(files["parent"], seed=4)
    (network,) = families([files["parent"]])[0]
    other = dataclasses.replace(network, card=dataclasses.replace(network.card, lineage=network.card.lineage[1:]))
    assert [row["variant"] for row in compare([other], config)] == ["ort", "ort-again", "pocketzoo", "pocketzoo-int8"]
    assert "is not what model.onnx was exported from; export it again" in capsys.readouterr().err


def test_ours_must_run(files: dict[str, Path], processes: Processes) -> None:
    processes.fail.add("pocketzoo-int8")
    with pytest.raises(PocketzooError, match="no such kernel"):
        compare(families([files["parent"]])[0], CONFIG)


def test_unknown_and_missing_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown peer 'openvinno'; did you mean openvino"):
        CompareConfig(peers=("openvinno",))
    with pytest.raises(UsageError, match="unknown peer 'pocketzoo'"):
        CompareConfig(peers=("pocketzoo",))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--peers openvino: openvino is not installed; pip install '\.\[peers\]'"):
        CompareConfig(peers=("openvino",))
    assert CompareConfig().chosen == [
        *("torch", "torch-channels-last", "ort", "ort-again", "ort-defaults-int8"),
        *("pocketzoo", "pocketzoo-int8"),
    ]
    everything = CompareConfig(peers=("all",))
    assert "torch-compile" in everything.chosen
    assert set(everything.absent) == {"openvino", "openvino-bf16", "openvino-int8"}


def test_a_processor_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_absent", lambda name: None)
    unable = dataclasses.replace(PEERS["openvino-bf16"], obstacle=lambda: "no such instructions")
    monkeypatch.setitem(PEERS, "openvino-bf16", unable)
    config = CompareConfig()
    assert config.absent == {"openvino-bf16": "no such instructions"}
    assert "openvino-bf16" not in config.chosen
    with pytest.raises(UsageError, match="--peers openvino-bf16: no such instructions"):
        CompareConfig(peers=("openvino-bf16",))


def test_numbers_by_hand(files: dict[str, Path], processes: Processes) -> None:
    (found,) = families([files["pruned"].parent])
    rows = {(row["artefact"], row["variant"]): row for row in compare(found, CONFIG, calibration=make_samples(3))}
    assert {(row["reference"]) for row in rows.values()} == {"ort cat"}
    assert {
        key: rows[key]["ratio"] for key in (("cat", "torch"), ("cat", "ort"), ("cat-pruned", "pocketzoo-int8"))
    } == {
        ("cat", "torch"): 0.25,
        ("cat", "ort"): 1.0,
        ("cat-pruned", "pocketzoo-int8"): 5.0,
    }
    row = rows["cat", "pocketzoo-int8"]
    # Two rounds, of 4 and 8 ms.
    assert row["p50_ms"] == 6.0
    assert (row["low_ms"], row["high_ms"]) == (4.0, 8.0)
    assert (row["ratio_low"], row["ratio"], row["ratio_high"]) == (2.5, 2.5, 2.5)
    assert (row["startup_seconds"], row["first_ms"], row["peak_mb"]) == (1.0, 12.0, 101.0)
    # Paced, 16 and 32 ms.
    assert (row["paced_p50_ms"], row["paced_round_ms"], row["pace_seconds"]) == (24.0, (16.0, 32.0), 0.005)
    assert (row["engine"], row["hint"], row["weights"]) == ("openvino", "f32", "trained")


def test_a_single_round_has_no_interval(files: dict[str, Path], processes: Processes) -> None:
    config = CompareConfig(peers=("ort",), latency=LatencyConfig(rounds=1, threads=1))
    row = compare(families([files["parent"]])[0], config)[-1]
    assert (row["low_ms"], row["high_ms"], row["ratio_low"], row["ratio_high"]) == (None, None, None, None)
    assert row["ratio"] == 2.5


def test_the_reference_must_run(files: dict[str, Path], processes: Processes) -> None:
    processes.fail.add("ort")
    with pytest.raises(PocketzooError, match="no such kernel"):
        compare(families([files["parent"]])[0], CompareConfig(peers=("torch",)))


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    for number, label in enumerate(("cat", "dog", "hen")):
        for index in range(10):
            path = tmp_path / "birds" / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(100 * number + index)))
    return tmp_path / "birds"


def test_the_command(files: dict[str, Path], processes: Processes, birds: Path, tmp_path: Path) -> None:
    folder = tmp_path / "output" / "bench"
    done = run_cli("bench", "compare", files["pruned"].parent, "--data", birds, "--accuracy", "--rounds", "1")
    for heading in ("vs ORT (range)", "times as fast as", "fastest peer"):
        assert heading in done.output
    assert max(len(line.rstrip()) for line in done.output.splitlines() if "/" not in line) <= 160
    assert len(read(folder / COMPARE)) == 20
    page = (folder / "compare.md").read_text()
    assert (
        f"`pocketzoo bench compare {files['pruned'].parent} --calibration-images 256 --accuracy --data {birds}" in page
    )
    rows = read(folder / COMPARE)
    assert all(row["pictures"] and row["split"] == "validation" for row in rows)
    options = ("--peers", "ort, torch", "--calibrate", birds, "--images", birds, "--json")
    lines = run_cli("bench", "compare", *options).output.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["variant"] for row in rows] == 2 * ["torch", "ort", "ort-again", "pocketzoo", "pocketzoo-int8"]
    assert {row["pictures"] for row in rows} == {30}
    assert len(read(folder / COMPARE)) == 20 + 10


def test_accuracy_is_measured_where_the_data_is_known(
    files: dict[str, Path], processes: Processes, birds: Path
) -> None:
    folder = Path(files["parent"]).parents[1] / "bench"
    options = ("--data", birds, "--peers", "ort", "--rounds", "1")
    run_cli("bench", "compare", files["parent"], *options)
    assert all(row["top1"] is not None for row in read(folder / COMPARE))
    run_cli("bench", "compare", files["parent"], *options, "--no-accuracy")
    assert all(row["top1"] is None for row in read(folder / COMPARE)[-4:])
    assert " --no-accuracy" in (folder / "compare.md").read_text()


def test_all_peers_and_those_that_are_absent(
    files: dict[str, Path], processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_absent", lambda name: "openvino" if "openvino" in name else None)
    done = run_cli("bench", "compare", files["parent"], "--peers", "all", "--rounds", "1")
    assert "openvino is left out: openvino is not installed; pip install '.[peers]'" in done.output
    assert "torch-compile" in done.output


def test_the_command_calibrates_with_the_images_that_quantize_takes(
    files: dict[str, Path], processes: Processes, birds: Path
) -> None:
    run_cli("bench", "compare", files["parent"], "--data", birds, "--calibration-images", "5", "--rounds", "1")
    assert sum(job.action == "prepare" for job in processes.jobs) == 10
    run_cli("bench", "compare", files["parent"], "--peers", "ort-defaults-int8", "--rounds", "1")
    assert processes.jobs[-1].peer == "pocketzoo-int8"


def test_wrong_usage(files: dict[str, Path], processes: Processes, birds: Path) -> None:
    with pytest.raises(UsageError, match="--images are images without labels, --accuracy wants labels"):
        run_cli("bench", "compare", files["parent"], "--images", birds, "--accuracy")
    with pytest.raises(ArtefactError, match="add --data"):
        run_cli("bench", "compare", files["parent"], "--accuracy")


def test_no_artefacts(processes: Processes) -> None:
    with pytest.raises(ArtefactError, match="run `make train compress export`"):
        run_cli("bench", "compare")
