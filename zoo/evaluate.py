"""Accuracy with its interval, calibration, and what goes of them into a card. `N` images, `K` labels."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from torch import nn

from zoo.batches import Images, Normalise
from zoo.card import Card, Input, Metrics, Reference
from zoo.datasets.base import Dataset, Sample
from zoo.errors import DataError
from zoo.image import batch
from zoo.predictor import softmax
from zoo.progress import track

__all__ = ["accuracy", "check_labels", "fit_temperature", "logits_of", "torch_logits", "with_validation"]

Logits = npt.NDArray[np.float32]
Classifier = Callable[[npt.NDArray[np.float32]], Logits]


def torch_logits(model: nn.Module, images: Images, *, device: torch.device, batch_size: int = 128) -> Logits:
    """Logits float32 [N, K] of decoded pictures, from a torch model in evaluation mode."""
    prepare = Normalise(images.spec, device)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            parts = [model(prepare(part.to(device))).float().cpu() for part, _ in images.in_order(batch_size)]
    finally:
        model.train(training)
    return torch.cat(parts).numpy()


def logits_of(classify: Classifier, samples: Sequence[Sample], spec: Input, *, batch_size: int = 64) -> Logits:
    """Logits float32 [N, K] from any function that maps inputs [B, C, H, W] to logits [B, K]."""
    starts = range(0, len(samples), batch_size)
    chunks = track(starts, total=len(starts), description="Evaluating")
    return np.concatenate(
        [classify(batch([s.read() for s in samples[start : start + batch_size]], spec)) for start in chunks]
    )


def accuracy(logits: Logits, labels: npt.NDArray[np.int64], *, dataset: str, split: str) -> Metrics:
    """Top-1 with its Wilson 95 % interval (scipy's), and top-5 where there are more than five labels.

    Args:
        logits: [N, K]; equal logits rank the earlier label first, as in serving.
        labels: [N], the true labels.
        dataset: name for the record.
        split: name for the record.
    """
    ranks = np.argsort(-logits, axis=1, kind="stable")
    hits = int((ranks[:, 0] == labels).sum())
    interval = binomtest(hits, len(labels)).proportion_ci(confidence_level=0.95, method="wilson")
    top5 = float((ranks[:, :5] == labels[:, None]).any(axis=1).mean()) if logits.shape[1] > 5 else None
    return Metrics(
        dataset=dataset,
        split=split,
        n=len(labels),
        top1=hits / len(labels),
        low=float(interval.low),
        high=float(interval.high),
        top5=top5,
    )


def fit_temperature(logits: Logits, labels: npt.NDArray[np.int64]) -> float:
    """The temperature in [0.05, 20] of least negative log-likelihood on [N, K] (Guo et al. 2017, section 4.2).

    It is 1 where every answer is right: the likelihood then only says that no temperature is low enough.
    """
    if (logits.argmax(axis=1) == labels).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        likelihood = scaled[np.arange(len(labels)), labels] - np.log(np.exp(scaled).sum(axis=1))
        return float(-likelihood.mean())

    best = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(best.x))


def check_labels(card: Card, dataset: Dataset) -> None:
    """Check that a data set's labels are the card's, in the same order.

    Raises:
        DataError: they differ.
    """
    if card.use.labels != dataset.labels:
        raise DataError(
            f"{card.name} knows the labels {list(card.use.labels)[:5]}, {dataset.name} has {list(dataset.labels)[:5]}; "
            "name the data it was trained on, or train it on this"
        )


def with_validation(card: Card, logits: Logits, dataset: Dataset) -> Card:
    """The card with what `logits` [N, K] on the validation split say: accuracy, temperature, reference for drift."""
    check_labels(card, dataset)
    labels = np.array([sample.label for sample in dataset.splits["validation"]], dtype=np.int64)
    temperature = fit_temperature(logits, labels)
    probabilities = softmax(logits, temperature)
    counts = Counter(probabilities.argmax(axis=1).tolist())
    reference = Reference(
        mean_confidence=float(probabilities.max(axis=1).mean()),
        histogram={label: counts.get(index, 0) for index, label in enumerate(card.use.labels)},
    )
    metrics = accuracy(logits, labels, dataset=dataset.name, split="validation")
    others = tuple(entry for entry in card.inform.metrics if entry.split != "validation")
    return dataclasses.replace(
        card,
        use=dataclasses.replace(card.use, temperature=temperature, reference=reference),
        inform=dataclasses.replace(card.inform, metrics=(metrics, *others)),
    )
