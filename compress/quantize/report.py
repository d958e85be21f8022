"""quantize.json: what quantization found out about an artefact, whether or not a file came of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zoo.artefact.card import LineageEntry
from zoo.base.files import HALF_GRAPH, sha256_file, write_bytes
from zoo.data.dataset import Sample
from zoo.training.recipe import QuantizeConfig
from zoo.training.workspace import is_current

__all__ = ["REPORT", "images_digest", "is_up_to_date", "read_report", "sentence", "write_report"]

REPORT = "quantize.json"
"""Beside the ONNX files: file name -> report."""

_MISSING = object()
"""Unlike any entry of a report, None included."""


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


def is_up_to_date(target: Path, config: QuantizeConfig, *, parent: str, data: Mapping[str, Any] | None = None) -> bool:
    """Whether the same quantization of the same file was done before, and its file, if it wrote one, is still there.

    Args:
        target: the quantized file.
        config: settings.
        parent: SHA-256 of the file to be quantized.
        data: what the report must say about the images: `unlabelled`, `dataset` and `calibration_digest`, or some of
            them; None: whatever they were.
    """
    report = read_report(target)
    if report is None:
        return False
    # What was refused has no file, and so no card: its report tells what its lineage would have said.
    entry = LineageEntry(stage="quantize", config=report.get("config") or {}, parent=report.get("parent"))
    if not is_current([entry], [("quantize", dataclasses.asdict(config))], parent):
        return False
    if any(report.get(key, _MISSING) != value for key, value in (data or {}).items()):
        return False
    if not report.get("written"):
        return not target.exists()
    return target.is_file() and sha256_file(target) == report.get("digest")


def sentence(report: Mapping[str, Any], path: Path = Path(HALF_GRAPH)) -> str:
    """One line: what the file gains and loses, whether it was written, and if not, why and what to do about it.

    Args:
        report: see compress.quantize.stage.
        path: how to name the file.
    """
    measured = report["measured"]
    speed = measured["speedup"]
    fast = "not timed here" if speed is None else f"{speed:.2f}x the speed of FP32"
    points = f"{-measured['drop']:+z.1f} points" + ("" if measured["drop_of"] == "top-1" else " expected")
    # Reports of earlier versions have no intervals.
    if speed is not None and "speedup_low" in measured:
        low, high = measured["speedup_low"], measured["speedup_high"]
        fast += f" ({low:.2f} to {high:.2f}" + (": not told from none)" if low <= 1 <= high else ")")
    if speed is not None and "engine" in measured:
        fast += f" in {measured['engine']}"
    if "drop_low" in measured:
        points += f" ({-measured['drop_high']:+z.1f} to {-measured['drop_low']:+z.1f}"
        points += ": not told from none)" if measured["drop_low"] <= 0 <= measured["drop_high"] else ")"
    points += f" on {measured['compared_images']:,} {measured['compared_on']}"
    if "floats_chosen_on" in measured:
        kept = sum(row["kept"] for row in report["sensitivity"])
        points += f", with {kept} nodes in float, chosen on {measured['floats_chosen_on']:,} others"
    parts = [fast, f"{measured['agreement']:.1%} of answers as before", points]
    numbers = f"{report['precision']} {', '.join(parts)}"
    if not report["written"]:
        stays = "; the earlier file stays" if report.get("earlier_stays") else ""
        return f"not written: {numbers}; {report['reason']}{stays}; --keep any writes it anyway"
    written = f"{numbers}: written"
    if report["verdict"] != "better":
        written += f", but not better: {report['reason']}"
    if report["precision"] == "FP16":
        # A folder means model.onnx or model.int8.onnx.
        written += f"; use it by its name, like `pocketzoo predict {path}`"
    return written


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
