"""quantize.json: what quantization found out about an artefact, whether or not a file came of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.datasets.base import Sample
from zoo.files import sha256_file, write_bytes
from zoo.recipe import QuantizeConfig

__all__ = ["REPORT", "images_digest", "is_up_to_date", "read_report", "sentence", "write_report"]

REPORT = "quantize.json"
"""Beside the ONNX files: file name -> report."""


def read_report(target: Path) -> dict[str, Any] | None:
    """The report on `target`, whether it was written or not; None where there is none that can be read."""
    found = _read(target.with_name(REPORT)).get(target.name)
    return found if isinstance(found, dict) else None


def write_report(target: Path, report: Mapping[str, Any]) -> None:
    """Store the report on `target` beside those on its neighbours, atomically."""
    path = target.with_name(REPORT)
    write_bytes(path, json.dumps({**_read(path), target.name: report}, indent=2, sort_keys=True).encode())


def images_digest(samples: Iterable[Sample]) -> str:
    """SHA-256 over the digests of some images, in whatever order they stand."""
    return hashlib.sha256("".join(sorted(sample.digest for sample in samples)).encode()).hexdigest()


def is_up_to_date(target: Path, config: QuantizeConfig, *, parent: str, calibrated_on: str | None = None) -> bool:
    """Whether the same quantization of the same file was done before, and its file, if it wrote one, is still there.

    Args:
        target: the quantized file.
        config: settings.
        parent: SHA-256 of the file to be quantized.
        calibrated_on: digest of the calibration images; None: whatever they were.
    """
    report = read_report(target)
    if report is None or report.get("parent") != parent or report.get("config") != _plain(config):
        return False
    if calibrated_on is not None and report.get("calibration_digest") != calibrated_on:
        return False
    if not report.get("written"):
        return not target.exists()
    return target.is_file() and sha256_file(target) == report.get("digest")


def sentence(report: Mapping[str, Any]) -> str:
    """One line: what the file gains and loses, whether it was written, and if not, why and what to do about it."""
    measured = report["measured"]
    speed = measured["speedup"]
    parts = [
        f"{speed:.2f}x the speed of FP32" if speed is not None else "not timed here",
        f"{measured['agreement']:.1%} of answers as before",
        f"{0.0 - measured['drop']:+.1f} points" + ("" if measured["drop_of"] == "top-1" else " expected"),
    ]
    numbers = f"{report['precision']} {', '.join(parts)}"
    if not report["written"]:
        return f"not written: {numbers}; {report['reason']}; --keep any writes it anyway"
    if report["verdict"] == "better":
        return f"{numbers}: written"
    return f"{numbers}: written, but not better: {report['reason']}"


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _plain(config: QuantizeConfig) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(config)))
