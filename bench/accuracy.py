"""Accuracy of artefacts on their test data, through the predictor that serves them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench.environment import environment
from bench.identity import identity
from zoo.datasets.base import SPLITS, Dataset
from zoo.errors import DataError, unknown_name
from zoo.evaluate import accuracy, logits_of
from zoo.predictor import Predictor

__all__ = ["measure_accuracy", "truth"]


def measure_accuracy(path: Path, dataset: Dataset, *, split: str = "test") -> dict[str, Any]:
    """One complete row for an ONNX file.

    Raises:
        UsageError: unknown split.
        DataError: the data set has labels that the artefact does not know.
        ArtefactError, CardError, CheckError: see zoo.predictor.Predictor.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    predictor = Predictor(path)
    logits = logits_of(predictor.logits, dataset.splits[split], predictor.card.use.input)
    metrics = accuracy(
        logits, truth(dataset, split, predictor.card.use.labels, where=str(path)), dataset=dataset.name, split=split
    )
    return {
        **identity(path, predictor.card),
        "dataset": dataset.name,
        "dataset_digest": dataset.digest,
        "split": split,
        "n": metrics.n,
        "top1": metrics.top1,
        "low": metrics.low,
        "high": metrics.high,
        "top5": metrics.top5,
        "environment": environment(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def truth(dataset: Dataset, split: str, labels: tuple[str, ...], *, where: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The true labels of a split as indices into `labels`: int64 [N].

    Raises:
        DataError: a label is unknown there.
    """
    if unknown := sorted(set(dataset.labels) - set(labels)):
        raise DataError(
            f"{where} does not know the label {unknown[0]!r} of {dataset.name}; it knows {list(labels)[:10]}"
        )
    index = {label: number for number, label in enumerate(labels)}
    return np.array([index[dataset.labels[sample.label]] for sample in dataset.splits[split]], dtype=np.int64)
