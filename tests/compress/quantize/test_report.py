"""Tests of compress.quantize.report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from compress.quantize.report import REPORT, images_digest, is_up_to_date, read_report, sentence, write_report
from tests.zoo.factories import make_samples
from zoo.base.files import sha256_file
from zoo.training.recipe import QuantizeConfig


def _report(**changes: Any) -> dict[str, Any]:
    measured = {"speedup": 1.62, "agreement": 0.991, "drop": 0.1, "drop_of": "top-1"}
    measured |= {"compared_images": 1019, "compared_on": "photographs"} | changes.pop("measured", {})
    return {
        "verdict": "better",
        "reason": "it keeps the budget and is faster",
        "written": True,
        "precision": "INT8",
        "parent": "p",
        "digest": None,
        "config": dataclasses.asdict(QuantizeConfig()),
        "dataset": "s",
        "unlabelled": False,
        "calibration_digest": "c",
        "measured": measured,
    } | changes


def test_reports_of_several_files_stand_side_by_side(tmp_path: Path) -> None:
    int8, half = tmp_path / "model.int8.onnx", tmp_path / "model.fp16.onnx"
    assert read_report(int8) is None
    write_report(int8, _report())
    write_report(half, _report(precision="FP16"))
    write_report(int8, _report(reason="again"))
    assert (read_report(int8) or {})["reason"] == "again"
    assert (read_report(half) or {})["precision"] == "FP16"
    assert list(json.loads((tmp_path / REPORT).read_text())) == ["model.fp16.onnx", "model.int8.onnx"]


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"model.int8.onnx": 3}'])
def test_a_report_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / REPORT).write_text(content)
    assert read_report(tmp_path / "model.int8.onnx") is None
    write_report(tmp_path / "model.int8.onnx", _report())
    assert read_report(tmp_path / "model.int8.onnx") == _report()


def test_up_to_date_means_same_parent_config_images_and_bytes(tmp_path: Path) -> None:
    target, config = tmp_path / "model.int8.onnx", QuantizeConfig()
    assert not is_up_to_date(target, config, parent="p")
    target.write_bytes(b"graph")
    write_report(target, _report(digest=sha256_file(target)))
    assert is_up_to_date(target, config, parent="p")
    told = {"unlabelled": False, "dataset": "s", "calibration_digest": "c"}
    assert is_up_to_date(target, config, parent="p", data=told)
    for changes in ({"unlabelled": True}, {"dataset": None}, {"dataset": "t"}, {"calibration_digest": "d"}):
        assert not is_up_to_date(target, config, parent="p", data=told | changes)
    assert not is_up_to_date(target, config, parent="p", data={"unheard of": None})
    assert not is_up_to_date(target, config, parent="q")
    assert not is_up_to_date(target, QuantizeConfig(images=3), parent="p")
    target.write_bytes(b"other")
    assert not is_up_to_date(target, config, parent="p")
    target.unlink()
    assert not is_up_to_date(target, config, parent="p")


def test_what_was_not_written_is_up_to_date_while_nothing_is_there(tmp_path: Path) -> None:
    target = tmp_path / "model.int8.onnx"
    write_report(target, _report(written=False, verdict="slower"))
    assert is_up_to_date(target, QuantizeConfig(), parent="p")
    target.write_bytes(b"of another parent")
    assert not is_up_to_date(target, QuantizeConfig(), parent="p")


def test_sentences() -> None:
    assert sentence(_report()) == (
        "INT8 1.62x the speed of FP32, 99.1% of answers as before, -0.1 points on 1,019 photographs: written"
    )
    assert sentence(_report(measured={"drop": 0.0})).endswith("+0.0 points on 1,019 photographs: written")
    slow = _report(written=False, verdict="slower", reason="it is slow", measured={"speedup": 0.934})
    assert sentence(slow) == (
        "not written: INT8 0.93x the speed of FP32, 99.1% of answers as before, -0.1 points on 1,019 photographs; "
        "it is slow; --keep any writes it anyway"
    )
    assert "; it is slow; the earlier file stays; --keep" in sentence(slow | {"earlier_stays": True})
    assert sentence(slow | {"written": True}).endswith("photographs: written, but not better: it is slow")
    expected = sentence(_report(measured={"speedup": None, "drop_of": "expected", "drop": -0.2}))
    assert expected.startswith("INT8 not timed here, 99.1% of answers as before, +0.2 points expected on 1,019 ")


def test_intervals_and_the_images_behind_them_are_said() -> None:
    ends = {"speedup_low": 0.98, "speedup_high": 1.7, "drop_low": -0.3, "drop_high": 0.5}
    told = {"measured": ends | {"engine": "openvino"}}
    assert sentence(_report(**told)) == (
        "INT8 1.62x the speed of FP32 (0.98 to 1.70: not told from none) in openvino, 99.1% of answers as before, "
        "-0.1 points (-0.5 to +0.3: not told from none) on 1,019 photographs: written"
    )
    kept = [{"kept": True}, {"kept": True}, {"kept": False}]
    mixed = _report(measured=ends | {"drop_low": 0.06, "floats_chosen_on": 1020}, sensitivity=kept)
    assert "(-0.5 to -0.1) on 1,019 photographs, with 2 nodes in float, chosen on 1,020 others:" in sentence(mixed)


@pytest.mark.parametrize("drop", [0.0, -0.0, 0.02, -0.02])
def test_nothing_lost_has_no_sign_of_loss(drop: float) -> None:
    assert "+0.0 points" in sentence(_report(measured={"drop": drop}))


def test_half_precision_is_used_by_its_name() -> None:
    found = sentence(_report(precision="FP16"), Path("output/x/model.fp16.onnx"))
    assert found.endswith(": written; use it by its name, like `pocketzoo predict output/x/model.fp16.onnx`")
    assert "predict" not in sentence(_report(precision="FP16", written=False, verdict="worse"))


def test_the_digest_of_images_does_not_depend_on_their_order() -> None:
    samples = make_samples(4)
    assert images_digest(samples) == images_digest(samples[::-1]) != images_digest(samples[:3])
