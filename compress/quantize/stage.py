"""Quantization of an exported graph, with the settings that suit the processor, and a verdict on what came of it.

A file is `better` if it keeps the accuracy budget and is faster than its parent on this machine. Where the budget does
not hold, the nodes that cost most stay in float until it does.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.quantize import quantizer
from compress.quantize.report import images_digest, write_report
from compress.quantize.targets import detect_target
from compress.quantize.trials import Images, Trial, Trials
from compress.write_graph import publish
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import Card, LineageEntry, advance, allow
from zoo.base.errors import DataError, UsageError
from zoo.base.files import code_commit, sha256_file
from zoo.data.dataset import Dataset, Sample
from zoo.training.evaluate import check_labels
from zoo.training.recipe import QuantizeConfig
from zoo.training.workspace import card_if_readable, is_current

__all__ = ["Quantized", "looked_at", "quantize"]

_SPLIT_FROM = 64
"""From so many unlabelled images on, some are kept from calibration to compare on."""
_COMPARED = 5000
"""Labelled images at most: the interval of a drop of half a point is then a quarter wide."""
_COMPARED_UNLABELLED = 512


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What came of it."""

    card: Card | None
    """Of the file; None if none was written."""
    written: bool
    report: dict[str, Any]
    """As in quantize.json; see compress.quantize.report."""


def quantize(
    source: Path,
    target: Path,
    config: QuantizeConfig,
    *,
    dataset: Dataset | None = None,
    images: Sequence[Sample] | None = None,
    name: str | None = None,
    analyse: bool = False,
    timed: bool = True,
) -> Quantized:
    """Quantize an exported graph, compare it with its parent, and write it if it deserves it.

    The report goes to quantize.json beside `target`. Where config.keep is `better` and the file is not, none is
    written, and one of another parent at `target` is removed. One of the same parent, made with other settings, stays
    with its own report, and the refusal is only returned.

    Args:
        source: ONNX file of the export stage.
        target: ONNX file to write.
        config: settings.
        dataset: its training split calibrates, its validation split says what is lost.
        images: calibrate on these instead; their labels are not read. Without a data set, some are kept to compare the
            answers with the parent's, if there are 64 or more.
        name: of the new artefact.
        analyse: measure what each node costs even if the budget holds.
        timed: compare the speed; without, only accuracy counts.

    Raises:
        ArtefactError: wrong stage, or a graph without anything to quantize.
        UsageError: a method that does not go with the target.
        DataError: no calibration images, or labels other than the artefact's.
        CheckError: the graph's answers are not finite.
    """
    begin = time.perf_counter()
    proto, card = graph.load(source)
    allow(card, "quantize")
    goal = _goal(config)
    if dataset is not None:
        check_labels(card, dataset)
        if "validation" not in dataset.splits:
            raise DataError(
                f"{card.name} was trained on the validation images, too, so none say what quantization costs; "
                "--calibrate FOLDER compares its answers on other images with FP32's, without labels"
            )
    data = _choose(dataset, images, config)
    study = Trials(source, proto, card, config, goal, data)
    trial, costs = study.best(analyse=analyse, timed=timed)
    parent = sha256_file(source)
    verdict, reason = _judge(trial, config, nodes=len(quantizer.weighted(study.prepared)))
    found = study.describe(trial) | {"verdict": verdict}
    written = verdict == "better" or config.keep == "any"
    done: Card | None = None
    if written:
        entry = LineageEntry(
            stage="quantize",
            config=dataclasses.asdict(config),
            parent=parent,
            seed=config.seed,
            commit=code_commit(),
        )
        child = advance(card, entry, name=name)
        child = dataclasses.replace(child, inform=dataclasses.replace(child.inform, precision=study.precision))
        done = publish(trial.model, child, target, dataset=dataset, begin=begin, check=lambda predictor: found)
    earlier = not written and is_current(card_if_readable(graph.read_card, target), [("quantize", None)], parent)
    if not written and not earlier:
        target.unlink(missing_ok=True)
    report = {
        "verdict": verdict,
        "reason": reason,
        "written": written,
        "earlier_stays": earlier,
        "precision": {"int8": "INT8", "float16": "FP16"}[study.precision],
        "parent": parent,
        "digest": sha256_file(target) if written else None,
        "config": dataclasses.asdict(config),
        "dataset": dataset.digest if dataset else None,
        "unlabelled": images is not None,
        "calibration_digest": data.digest,
        "measured": found,
        "sensitivity": [dataclasses.asdict(cost) | {"kept": cost.node in trial.floats} for cost in costs],
        "seconds": round(time.perf_counter() - begin, 1),
    }
    if not earlier:
        write_report(target, report)
    return Quantized(card=done, written=written, report=report)


def looked_at(config: QuantizeConfig) -> int:
    """How many unlabelled images :func:`quantize` has a use for: to calibrate, and to compare."""
    return config.images + _COMPARED_UNLABELLED


def _goal(config: QuantizeConfig) -> str:
    """The target, `auto` resolved, after checking that the settings go together."""
    if config.target == "cuda" and config.method not in ("auto", "fp16"):
        raise UsageError(
            f"--target cuda goes with --method fp16, got {config.method}: ONNX Runtime's CUDA kernels do not speed "
            "up INT8 graphs; use fp16, or --target tensorrt"
        )
    if config.target == "tensorrt" and config.method == "dynamic":
        raise UsageError(
            "--target tensorrt goes with --method static or fp16: TensorRT wants fixed ranges, got dynamic"
        )
    return detect_target() if config.target == "auto" else config.target


def _choose(dataset: Dataset | None, images: Sequence[Sample] | None, config: QuantizeConfig) -> Images:
    if dataset is None and images is None:
        raise DataError(
            "quantization needs calibration images; name a folder with --calibrate, or a data set with --data"
        )
    pool = list(images) if images is not None else list(dataset.splits["train"] if dataset else ())
    digest = images_digest(pool)
    random.Random(config.seed).shuffle(pool)
    chosen = pool[: config.images]
    if not chosen:
        raise DataError(
            "quantization needs at least one calibration image, got none; name a folder of images with --calibrate"
        )
    origin = f"training images of {dataset.name}" if dataset and images is None else "unlabelled images"
    if dataset is not None:
        comparison = list(dataset.splits["validation"])
        if len(comparison) > _COMPARED:
            comparison = random.Random(config.seed).sample(comparison, _COMPARED)
        labels = np.array([sample.label for sample in comparison], dtype=np.int64)
        place = f"validation images of {dataset.name}"
        return Images(
            calibration=chosen, comparison=comparison, labels=labels, source=origin, compared_on=place, digest=digest
        )
    place = "images of the calibration itself"
    others = chosen
    if len(pool) >= _SPLIT_FROM:
        cut = min(config.images, len(pool) * 3 // 4)
        chosen, others = pool[:cut], pool[cut:][:_COMPARED_UNLABELLED]
        place = "unlabelled images apart from the calibration"
    return Images(calibration=chosen, comparison=others, labels=None, source=origin, compared_on=place, digest=digest)


def _judge(trial: Trial, config: QuantizeConfig, *, nodes: int) -> tuple[str, str]:
    """The verdict and its reason."""
    comparison, speed = trial.comparison, trial.speed
    images = f"on {comparison.n:,} images" + ("" if comparison.told else ", which do not tell that from nothing")
    if not trial.keeps(config.max_drop):
        kind = "" if comparison.top1 is not None else " (expected)"
        beside = f" even with {len(trial.floats)} of {nodes} layers in float" if trial.floats else ""
        return "worse", (
            f"it loses {comparison.drop:.2f} points{kind}{beside} {images}, --max-drop allows {config.max_drop:g}; "
            "try --calibration mse, more --images or a larger --max-drop"
        )
    if speed is None:
        return "better", "it keeps the budget"
    rounds = f"{speed.rounds} rounds do not tell its speed from FP32's"
    if speed.speedup <= 1:
        why = "it is slower than FP32 on this machine" if speed.told else rounds
        return "slower", f"{why} (this result is kept, --force measures again)"
    # On a busy machine a slow round or two say little of the file: the median decides, and that it is not sure is said.
    return "better", "it keeps the budget and is faster" + ("" if speed.told else f", though {rounds}")
