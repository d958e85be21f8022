"""A report for scripts: every number of its page as JSON values."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from bench.report.measure import Comparison, Line, Report, name_of
from bench.report.quality import Answers

__all__ = ["document"]


def document(report: Report) -> dict[str, Any]:
    """The report as JSON values; fractions are not per cent."""
    pictures = report.pictures
    return {
        "artefact": report.artefact,
        "command": report.command,
        "run": report.run,
        "time": report.time,
        "environment": dict(report.environment),
        "dataset": pictures.name,
        "dataset_digest": pictures.dataset.digest if pictures.dataset else None,
        "split": pictures.split or None,
        "n": len(pictures.samples),
        "latency": dataclasses.asdict(report.latency),
        "load_average": report.load,
        "remarks": list(report.remarks),
        "files": [_line_values(line) for line in report.lines],
        "comparisons": [_comparison_values(comparison) for comparison in report.comparisons],
        "subject": name_of(report.subject.path),
        "card": dataclasses.asdict(report.subject.card),
        "lineage": [dataclasses.asdict(stage) for stage in report.subject.card.lineage],
        "curves": [dataclasses.asdict(curve) for curve in report.curves],
        "curve_problems": list(report.curve_problems),
        "answers": _answer_values(report.answers) if report.answers else None,
        "peers": dataclasses.asdict(report.peers),
    }


def _line_values(line: Line) -> dict[str, Any]:
    inform = line.card.inform
    return {
        "artefact": line.path.parent.name,
        "file": line.path.name,
        "digest": line.digest,
        "precision": inform.precision,
        "engine": line.engine,
        "engine_reason": line.engine_reason,
        "metrics": dataclasses.asdict(line.metrics) if line.metrics else None,
        "calibration_error": line.calibration_error,
        "macs": inform.macs,
        "parameters": inform.parameters,
        "bytes": line.path.stat().st_size,
        "latency": [{"threads": threads, **dataclasses.asdict(timing)} for threads, timing in line.timings.items()],
    }


def _comparison_values(comparison: Comparison) -> dict[str, Any]:
    return {
        "file": name_of(comparison.path),
        "against": name_of(comparison.reference),
        "relation": comparison.relation,
        "n": comparison.n,
        "agreement": comparison.agreement,
        "paired": dataclasses.asdict(comparison.paired) if comparison.paired else None,
        "worst": [dataclasses.asdict(loss) for loss in comparison.worst],
        "smaller": comparison.smaller,
        "speed": [
            {"threads": threads, "times": speed.value, "low": speed.low, "high": speed.high}
            for threads, speed in comparison.speed.items()
        ],
    }


def _answer_values(answers: Answers) -> dict[str, Any]:
    return {
        "classes": [dataclasses.asdict(row) for row in answers.classes],
        "averages": dataclasses.asdict(answers.averages) if answers.averages else None,
        # Most cells of a thousand labels are empty.
        "confusion": [
            {"true": int(row), "answered": int(column), "n": int(answers.confusion[row, column])}
            for row, column in np.argwhere(answers.confusion)
        ],
        "calibration": {"before": dataclasses.asdict(answers.before), "after": dataclasses.asdict(answers.after)},
        "wrong": answers.wrong,
        "errors": [
            {name: value for name, value in dataclasses.asdict(error).items() if name != "picture"}
            | {"top": [{"label": label, "probability": probability} for label, probability in error.top]}
            for error in answers.errors
        ],
    }
