"""Tests of compress.quantize.stage and compress.quantize.trials. Speeds are made up; no outcome depends on a clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.quantize import trials
from compress.quantize.qdq_layers import Graph, layers
from compress.quantize.quantizer import prepare, stems
from compress.quantize.report import read_report, sentence
from compress.quantize.stage import quantize
from compress.quantize.targets import TARGETS
from compress.quantize.trials import Speed, not_timed
from tests.compress.graphs import exported
from tests.zoo.factories import make_card, make_dataset, make_samples, write_artefact
from zoo.artefact import onnx_file as graph
from zoo.artefact.predictor import Predictor, tolerance
from zoo.base.errors import ArtefactError, CardError, CheckError, DataError, UsageError
from zoo.data.dataset import Dataset
from zoo.training.evaluate import logits_of
from zoo.training.recipe import _TARGETS, QuantizeConfig


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = {"cnn": "cnn5", "vit": "vit_tiny_patch16_224"}
    return {name: exported(full, tmp_path_factory.mktemp(name)) for name, full in names.items()}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset(per_split=24)


@pytest.fixture(autouse=True)
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The speed that each method's file seems to have; 1.5 unless a test says otherwise."""
    found: dict[str, float] = {}

    def measure(parent: Path, child: Path) -> Speed:
        assert graph.read_card(parent).inform.precision == "float32"
        kinds = {node.op_type for node in onnx.load(str(child)).graph.node}
        x, spread = found.get("dynamic" if "MatMulInteger" in kinds else "static", 1.5), found.get("spread", 0.05)
        return Speed(speedup=x, speedup_low=x - spread, speedup_high=x + spread, rounds=9, parent_ms=3.0, ms=2.0)

    monkeypatch.setattr(trials, "measure_speed", measure)
    monkeypatch.setattr(trials, "not_timed", lambda goal: "" if goal == "portable" else "made up")
    return found


def _lax(**changes: object) -> QuantizeConfig:
    return dataclasses.replace(QuantizeConfig(images=16, max_drop=100.0), **changes)  # type: ignore[arg-type]


def test_a_better_file_is_written_with_all_that_was_measured(
    networks: dict[str, Path], dataset: Dataset, tmp_path: Path
) -> None:
    source, target = networks["cnn"], tmp_path / "model.int8.onnx"
    done = quantize(source, target, _lax(), dataset=dataset, name="small")
    assert done.written
    assert done.card == graph.read_card(target)
    assert (done.card.name, done.card.inform.precision) == ("small", "int8")
    summary = done.card.lineage[-1].summary
    answers = [
        logits_of(Predictor(path).logits, dataset.splits["validation"], done.card.use.input)
        for path in (source, target)
    ]
    labels = np.array([sample.label for sample in dataset.splits["validation"]])
    before, after = (logits.argmax(axis=1) for logits in answers)
    assert summary["agreement"] == pytest.approx((before == after).mean(), abs=1e-4)
    assert summary["drop"] == pytest.approx(100 * ((before == labels).mean() - (after == labels).mean()), abs=1e-3)
    assert summary["parity"] == pytest.approx(np.abs(answers[0] - answers[1]).max(), rel=0.1)
    assert (summary["speedup"], summary["verdict"], summary["drop_of"]) == (1.5, "better", "top-1")
    assert (summary["method"], summary["target"], summary["reduce_range"]) == ("static", "portable", True)
    assert (summary["calibration_images"], summary["compared_images"]) == (16, 24)
    assert summary["float_nodes"] == [node.name for node in stems(prepare(graph.load(source)[0]))] == ["node_conv2d"]
    assert summary["drop_low"] < summary["drop"] < summary["drop_high"]
    assert (summary["speedup_low"], summary["speedup_high"], summary["rounds"]) == (1.45, 1.55, 9)
    assert summary["bytes"] < 0.5 * summary["parent_bytes"]
    assert read_report(target) == done.report
    assert done.report["measured"] == dict(summary)


def test_a_slower_file_is_not_written_and_an_old_one_goes(
    networks: dict[str, Path], dataset: Dataset, tmp_path: Path, speeds: dict[str, float]
) -> None:
    speeds["static"] = 0.93
    target = tmp_path / "model.int8.onnx"
    target.write_bytes(b"of an older parent")
    done = quantize(networks["cnn"], target, _lax(), dataset=dataset)
    assert (done.written, done.card, target.exists()) == (False, None, False)
    assert done.report["verdict"] == "slower"
    assert sentence(done.report).startswith("not written: INT8 0.93x the speed of FP32")
    assert read_report(target) == done.report
    kept = quantize(networks["cnn"], target, _lax(keep="any"), dataset=dataset)
    assert kept.written
    assert graph.read_card(target).lineage[-1].summary["verdict"] == "slower"


def test_an_earlier_file_of_the_same_parent_stays_with_its_report(
    networks: dict[str, Path], dataset: Dataset, tmp_path: Path, speeds: dict[str, float]
) -> None:
    target = tmp_path / "model.int8.onnx"
    first = quantize(networks["cnn"], target, _lax(), dataset=dataset)
    before = target.read_bytes()
    speeds["static"] = 0.93
    refused = quantize(networks["cnn"], target, _lax(calibration="mse"), dataset=dataset)
    assert (refused.written, refused.card, refused.report["earlier_stays"]) == (False, None, True)
    assert "; the earlier file stays; --keep any" in sentence(refused.report)
    assert target.read_bytes() == before
    assert read_report(target) == first.report
    # To a source with another digest, the file is of another parent.
    other = tmp_path / "other.onnx"
    model, card = graph.load(networks["cnn"])
    graph.write(model, dataclasses.replace(card, name="other"), other)
    gone = quantize(other, target, _lax(calibration="mse"), dataset=dataset)
    assert (gone.written, gone.report["earlier_stays"], target.exists()) == (False, False, False)
    assert "earlier" not in sentence(gone.report)
    assert read_report(target) == gone.report


def test_the_report_says_on_what_it_was_calibrated(networks: dict[str, Path], dataset: Dataset, tmp_path: Path) -> None:
    images = make_samples(20, seed=9)
    for options, told in (
        ({"dataset": dataset}, (dataset.digest, False)),
        ({"images": images}, (None, True)),
        ({"dataset": dataset, "images": images}, (dataset.digest, True)),
    ):
        done = quantize(networks["cnn"], tmp_path / "out.onnx", _lax(), timed=False, **options)  # type: ignore[arg-type]
        assert (done.report["dataset"], done.report["unlabelled"]) == told


def test_without_bias_correction_no_bias_changes(networks: dict[str, Path], dataset: Dataset, tmp_path: Path) -> None:
    path, parent = tmp_path / "out.onnx", Graph(prepare(graph.load(networks["cnn"])[0]))
    for corrected in (False, True):
        config = _lax(method="static", bias_correction=corrected)
        quantize(networks["cnn"], path, config, dataset=dataset, timed=False)
        child = Graph(onnx.load(str(path)))
        moved = []
        for layer in layers(child, parent):
            assert layer.bias is not None and layer.bias_scale is not None
            step = child.array(layer.bias_scale)
            moved.append(np.abs(child.array(layer.bias) * step - layer.float_bias).max() > 0.51 * step.max())
        assert len(moved) > 2
        assert any(moved) == corrected


@pytest.mark.parametrize("architecture", ["cnn", "vit"])
def test_dynamic_ranges_are_taken_only_where_asked_for(
    networks: dict[str, Path], dataset: Dataset, tmp_path: Path, speeds: dict[str, float], architecture: str
) -> None:
    speeds |= {"static": 1.1, "dynamic": 1.3}
    done = quantize(networks[architecture], tmp_path / "out.onnx", _lax(), dataset=dataset)
    assert done.report["measured"]["method"] == "static"
    done = quantize(networks[architecture], tmp_path / "out.onnx", _lax(method="dynamic"), dataset=dataset)
    assert done.report["measured"]["method"] == "dynamic"
    assert done.report["measured"]["calibration_images"] == 0
    # Their answers depend on the images beside them, so they are compared as they are served: one by one.
    samples, predictor = dataset.splits["validation"], Predictor(tmp_path / "out.onnx")
    parent = logits_of(Predictor(networks[architecture]).logits, samples, predictor.card.use.input)
    alone = logits_of(predictor.logits, samples, predictor.card.use.input, batch_size=1)
    assert done.report["measured"]["parity"] == pytest.approx(np.abs(parent - alone).max(), rel=0.06)


@pytest.mark.parametrize(
    ("speedup", "spread", "reason"),
    [
        (1.02, 0.05, "it keeps the budget and is faster, though 9 rounds do not tell its speed from FP32's"),
        (0.98, 0.1, "9 rounds do not tell its speed from FP32's (this result is kept"),
        (0.9, 0.05, "it is slower than FP32 on this machine (this result is kept"),
        (1.3, 0.25, "it keeps the budget and is faster"),
    ],
)
def test_a_speed_that_the_rounds_do_not_tell_from_the_parents_is_called_so(
    networks: dict[str, Path],
    dataset: Dataset,
    tmp_path: Path,
    speeds: dict[str, float],
    speedup: float,
    spread: float,
    reason: str,
) -> None:
    speeds |= {"static": speedup, "spread": spread}
    done = quantize(networks["cnn"], tmp_path / "out.onnx", _lax(), dataset=dataset)
    assert done.report["reason"].startswith(reason)
    assert ("do not tell" in done.report["reason"]) == (speedup - spread <= 1 <= speedup + spread)
    assert done.written == (speedup > 1)
    assert done.report["measured"]["speedup_low"] == pytest.approx(speedup - spread)


def _lose(monkeypatch: pytest.MonkeyPatch, top1: Callable[[int], float]) -> None:
    """Let a trial have a top-1 that depends on how many of its nodes are in float; its parent's is 1."""
    real = trials.Trials._try

    def worse(self: trials.Trials, method: str, model: onnx.ModelProto, *rest: Any) -> trials.Trial:
        trial = real(self, method, model, *rest)
        lost = dataclasses.replace(trial.comparison, top1_parent=1.0, top1=top1(len(trial.floats)))
        return dataclasses.replace(trial, comparison=lost)

    monkeypatch.setattr(trials.Trials, "_try", worse)


def test_nodes_that_cost_most_stay_in_float_until_the_budget_holds(
    networks: dict[str, Path], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is made to hold from three nodes in float on."""
    _lose(monkeypatch, lambda floats: 0.9 if floats < 3 else 1.0)
    done = quantize(networks["cnn"], tmp_path / "out.onnx", _lax(max_drop=0.5), dataset=dataset)
    rows = done.report["sensitivity"]
    assert [row["kept"] for row in rows] == [True] * 3 + [False] * (len(rows) - 3)
    left = set(done.report["measured"]["float_nodes"])
    chosen = {row["node"] for row in rows[:3] if row["kind"] in ("Conv", "Gemm", "MatMul")}
    assert left == chosen | {"node_conv2d"}
    assert done.report["measured"]["drop"] == 0
    # Chosen on one half of the images, judged on the other.
    assert (done.report["measured"]["floats_chosen_on"], done.report["measured"]["compared_images"]) == (12, 12)
    assert "12 validation images of tiny, with 3 nodes in float, chosen on 12 others: written" in sentence(done.report)
    assert done.written


def test_a_budget_that_nothing_meets_is_said_with_the_nearest_candidate(
    networks: dict[str, Path], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _lose(monkeypatch, lambda floats: 0.9 + 0.01 * (floats == 2))
    done = quantize(networks["cnn"], tmp_path / "out.onnx", _lax(max_drop=0.5), dataset=dataset)
    assert (done.written, done.report["verdict"]) == (False, "worse")
    assert "it loses 9.00 points even with 2 of" in done.report["reason"]
    assert "--max-drop allows 0.5; try" in done.report["reason"]
    # What breaks the budget is not timed: it would not be published anyway.
    assert done.report["measured"]["speedup"] is None


def test_the_analysis_can_be_asked_for(networks: dict[str, Path], dataset: Dataset, tmp_path: Path) -> None:
    done = quantize(networks["cnn"], tmp_path / "out.onnx", _lax(), dataset=dataset, analyse=True, timed=False)
    assert len(done.report["sensitivity"]) > 5
    assert not any(row["kept"] for row in done.report["sensitivity"])
    assert done.report["measured"]["not_timed"] == "not asked for"
    assert done.report["verdict"] == "better"


@pytest.mark.parametrize(("count", "calibrated", "compared"), [(63, 40, 40), (64, 40, 24), (100, 40, 60)])
def test_unlabelled_images_calibrate_and_compare(
    networks: dict[str, Path], tmp_path: Path, count: int, calibrated: int, compared: int
) -> None:
    images = [dataclasses.replace(sample, label=-1) for sample in make_samples(count)]
    done = quantize(networks["cnn"], tmp_path / "out.onnx", _lax(images=40), images=images)
    found = done.report["measured"]
    assert (found["calibration_images"], found["compared_images"]) == (calibrated, compared)
    assert ("itself" in found["compared_on"]) == (count < 64)
    assert (found["drop_of"], found["drop"]) == ("expected", found["expected_drop"])
    assert done.card is not None
    assert done.card.inform.metrics == ()
    assert done.card.use.golden is not None


def test_with_a_data_set_unlabelled_images_only_calibrate(
    networks: dict[str, Path], dataset: Dataset, tmp_path: Path
) -> None:
    images = make_samples(80, seed=9)
    done = quantize(networks["cnn"], tmp_path / "out.onnx", _lax(), dataset=dataset, images=images)
    found = done.report["measured"]
    assert (found["calibrated_on"], found["compared_on"]) == ("unlabelled images", "validation images of tiny")
    assert done.card is not None
    assert [metrics.n for metrics in done.card.inform.metrics] == [24]


@pytest.mark.parametrize(("method", "target"), [("fp16", "portable"), ("auto", "cuda")])
def test_half_precision(networks: dict[str, Path], dataset: Dataset, tmp_path: Path, method: str, target: str) -> None:
    path = tmp_path / "model.fp16.onnx"
    done = quantize(networks["vit"], path, _lax(method=method, target=target), dataset=dataset)
    assert done.card is not None
    assert (done.card.inform.precision, tolerance(done.card)) == ("float16", 0.01)
    assert {tensor.data_type for tensor in onnx.load(str(path)).graph.initializer} >= {TensorProto.FLOAT16}
    found = done.report["measured"]
    assert found["method"] == "fp16"
    assert 0 < found["parity"] < 0.05
    assert found["not_timed"]
    assert found["bytes"] < 0.6 * found["parent_bytes"]
    assert Predictor(path).predict([dataset.splits["test"][0].read()])[0].labels[0] in done.card.use.labels


@pytest.mark.parametrize(
    ("goal", "here", "providers", "reason"),
    [
        ("portable", "portable", ["CPUExecutionProvider"], ""),
        ("portable", "vnni", ["CPUExecutionProvider"], ""),
        ("vnni", "portable", ["CPUExecutionProvider"], "processor is of the kind portable"),
        ("arm", "vnni", ["CPUExecutionProvider"], "processor is of the kind vnni"),
        ("portable", "arm", ["CPUExecutionProvider"], "processor is of the kind arm"),
        ("cuda", "portable", ["CPUExecutionProvider"], "no CUDA"),
        ("cuda", "portable", ["CUDAExecutionProvider"], ""),
        ("portable", "portable", ["CUDAExecutionProvider"], "answers on its GPU"),
        ("tensorrt", "portable", ["CUDAExecutionProvider"], "does not run TensorRT"),
    ],
)
def test_only_this_machines_kind_of_file_is_timed(
    monkeypatch: pytest.MonkeyPatch, goal: str, here: str, providers: list[str], reason: str
) -> None:
    monkeypatch.setattr(trials, "detect_target", lambda: here)
    monkeypatch.setattr(trials, "default_providers", lambda: providers)
    found = not_timed(goal)
    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "cuda", "method": "static"}, "--target cuda goes with --method fp16, got static"),
        ({"target": "tensorrt", "method": "dynamic"}, "--target tensorrt goes with --method static or fp16"),
    ],
)
def test_settings_that_do_not_go_together(
    networks: dict[str, Path], dataset: Dataset, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        quantize(networks["cnn"], tmp_path / "out.onnx", _lax(**changes), dataset=dataset)
    assert list(tmp_path.iterdir()) == []


def test_every_target_can_be_chosen() -> None:
    assert set(_TARGETS) == {*TARGETS, "cuda", "auto"}


def test_no_calibration_images(networks: dict[str, Path], tmp_path: Path) -> None:
    for options, message in (
        ({"images": []}, r"at least one calibration image, got none"),
        ({}, r"needs calibration images; name a folder with --calibrate"),
    ):
        with pytest.raises(DataError, match=message):
            quantize(networks["cnn"], tmp_path / "out.onnx", _lax(), **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_labels_of_other_data(networks: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="knows the labels"):
        quantize(networks["cnn"], tmp_path / "out.onnx", _lax(), dataset=make_dataset(classes=2))


def test_a_second_quantization_and_a_file_without_a_card(
    networks: dict[str, Path], dataset: Dataset, tmp_path: Path
) -> None:
    once = tmp_path / "model.int8.onnx"
    quantize(networks["cnn"], once, _lax(), dataset=dataset)
    with pytest.raises(ArtefactError, match="already quantized"):
        quantize(once, tmp_path / "twice.onnx", _lax(), dataset=dataset)
    bare = onnx.load(str(networks["cnn"]))
    del bare.metadata_props[:]
    onnx.save(bare, str(tmp_path / "bare.onnx"))
    with pytest.raises(CardError, match=r"no `zoo\.card` in its metadata"):
        quantize(tmp_path / "bare.onnx", tmp_path / "twice.onnx", _lax(), dataset=dataset)
    assert not (tmp_path / "twice.onnx").exists()


def _pooled(path: Path, *, scale: float) -> None:
    """An artefact without weights: three channels' means, twice times a number, are the logits."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Mul", ["flat", "scale"], ["scaled"]),
        helper.make_node("Mul", ["scaled", "scale"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])]
    body = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(np.float32(scale), "scale")])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    graph.write(model, make_card(stages=("train", "export")), path)


def test_nothing_to_quantize(dataset: Dataset, tmp_path: Path) -> None:
    _pooled(tmp_path / "pooled.onnx", scale=1.0)
    for method in ("static", "dynamic"):
        with pytest.raises(ArtefactError, match="nothing in this graph can be quantized"):
            quantize(tmp_path / "pooled.onnx", tmp_path / "out.onnx", _lax(method=method), dataset=dataset)


def test_half_precision_that_overflows_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    _pooled(tmp_path / "pooled.onnx", scale=1e5 / 2)
    images = make_samples(4)
    with pytest.raises(CheckError, match="activation logits reaches"):
        quantize(tmp_path / "pooled.onnx", tmp_path / "out.onnx", _lax(method="fp16"), images=images)


def test_a_matrix_product_alone_is_quantized(dataset: Dataset, tmp_path: Path) -> None:
    write_artefact(tmp_path / "linear.onnx", make_card(stages=("train", "export")))
    done = quantize(tmp_path / "linear.onnx", tmp_path / "out.onnx", _lax(), dataset=dataset)
    assert done.written
    assert Predictor(tmp_path / "out.onnx").predict([dataset.splits["test"][0].read()])[0].labels
