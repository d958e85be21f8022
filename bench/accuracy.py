"""Accuracy of artefacts on their test data, through the predictor that serves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.artefact_fields import engine_fields, identity
from bench.rows import stamp
from zoo.artefact.predictor import Predictor
from zoo.base.errors import unknown_name
from zoo.data.dataset import SPLITS, Dataset
from zoo.data.image_set import truth
from zoo.training.evaluate import accuracy, logits_of

__all__ = ["measure_accuracy"]


def measure_accuracy(path: Path, dataset: Dataset, *, split: str = "test", engine: str | None = None) -> dict[str, Any]:
    """One complete row for an ONNX file.

    Raises:
        UsageError: unknown split.
        DataError: the data set has labels that the artefact does not know.
        ArtefactError, CardError, CheckError: see zoo.artefact.predictor.Predictor.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    predictor = Predictor(path, engine=engine)
    logits = logits_of(predictor.logits, dataset.splits[split], predictor.card.use.input)
    metrics = accuracy(
        logits, truth(dataset, split, predictor.card.use.labels, where=str(path)), dataset=dataset.name, split=split
    )
    return {
        **identity(path, predictor.card),
        **engine_fields(predictor),
        "dataset": dataset.name,
        "dataset_digest": dataset.digest,
        "split": split,
        "n": metrics.n,
        "top1": metrics.top1,
        "low": metrics.low,
        "high": metrics.high,
        "top5": metrics.top5,
        **stamp(),
    }
