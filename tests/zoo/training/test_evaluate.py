"""Accuracy, its interval, per class, and calibration."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.zoo.factories import make_card, make_dataset, make_input
from zoo.artefact.card import Metrics
from zoo.artefact.predictor import softmax
from zoo.base.errors import DataError, UsageError
from zoo.data.decoded import DecodedImages
from zoo.training.evaluate import (
    Averages,
    ClassMetrics,
    accuracy,
    averages,
    calibration_error,
    check_labels,
    fit_temperature,
    logits_of,
    per_class,
    rare_labels,
    torch_logits,
    with_validation,
)


def _logits(hits: int, n: int) -> np.ndarray:
    logits = np.zeros((n, 2), np.float32)
    logits[:hits, 0], logits[hits:, 1] = 1, 1
    return logits


@pytest.mark.parametrize(("hits", "n"), [(980, 1000), (0, 10), (10, 10), (1, 2)])
def test_wilson_interval(hits, n):
    found = accuracy(_logits(hits, n), np.zeros(n, np.int64), dataset="d", split="test")
    # Wilson 1927, with z of 95 %
    z, p = 1.959963984540054, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    assert found.top1 == p
    assert (found.low, found.high) == pytest.approx(((middle - half) / scale, (middle + half) / scale), abs=1e-12)


def test_wilson_interval_of_980_of_1000():
    found = accuracy(_logits(980, 1000), np.zeros(1000, np.int64), dataset="d", split="test")
    assert (round(found.low, 4), round(found.high, 4)) == (0.9693, 0.9870)
    assert found == Metrics(dataset="d", split="test", n=1000, top1=0.98, low=found.low, high=found.high)


def test_ties_go_to_the_earlier_label():
    logits = np.zeros((2, 3), np.float32)
    assert accuracy(logits, np.array([0, 1]), dataset="d", split="s").top1 == 0.5
    many = np.zeros((2, 64), np.float32)
    many[:, 40] = 1
    assert accuracy(many, np.array([3, 3]), dataset="d", split="s").top5 == 1


@pytest.mark.parametrize("rows", [3, 4096])
def test_ranks_are_those_of_a_stable_sort(rows, monkeypatch):
    monkeypatch.setattr("zoo.training.evaluate._ROWS", rows)
    draw = np.random.default_rng(0)
    logits = draw.integers(0, 4, (200, 9)).astype(np.float32)  # ties everywhere
    logits[draw.random(logits.shape) < 0.1] = np.nan
    labels = draw.integers(0, 9, 200)
    order = np.argsort(-logits, axis=1, kind="stable")
    found = accuracy(logits, labels, dataset="d", split="s")
    assert found.top1 == (order[:, 0] == labels).mean()
    assert found.top5 == (order[:, :5] == labels[:, None]).any(axis=1).mean()


def test_the_temperature_of_many_rows_is_that_of_few_at_a_time(monkeypatch):
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(500, 7)).astype(np.float32), draw.integers(0, 7, 500)
    whole = fit_temperature(logits, labels)
    monkeypatch.setattr("zoo.training.evaluate._ROWS", 64)
    assert fit_temperature(logits, labels) == whole


def test_top5_where_there_are_more_than_five_labels():
    logits = -np.arange(6, dtype=np.float32)[None].repeat(6, axis=0)
    labels = np.arange(6)
    found = accuracy(logits, labels, dataset="d", split="s")
    assert (found.top1, found.top5) == pytest.approx((1 / 6, 5 / 6))
    assert accuracy(logits[:5, :5], labels[:5], dataset="d", split="s").top5 is None


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_recovered(temperature):
    generator = np.random.default_rng(0)
    calibrated = generator.normal(size=(20_000, 4)).astype(np.float32) * 2
    chances = softmax(calibrated).cumsum(axis=1)
    labels = (generator.random((20_000, 1)) > chances).sum(axis=1).clip(0, 3)
    assert fit_temperature(calibrated * np.float32(temperature), labels) == pytest.approx(temperature, rel=0.03)


def test_temperature_stays_within_its_bounds():
    perfect, labels = _logits(10, 10), np.zeros(10, np.int64)
    assert fit_temperature(perfect, labels) == 1.0  # nothing wrong, so nothing to learn from
    assert fit_temperature(np.repeat(perfect, 50, axis=0), np.repeat(labels, 50)) == 1.0
    assert fit_temperature(perfect, 1 - labels) == pytest.approx(20, rel=0.01)


def test_both_ways_to_logits_agree():
    dataset, spec = make_dataset(7), make_input(4, "L")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)).train()
    samples = dataset.splits["test"]
    ours = torch_logits(model, DecodedImages(samples, spec), batch_size=3)
    assert model.training and ours.shape == (7, 3) and ours.dtype == np.float32

    @torch.inference_mode()
    def classify(images: np.ndarray) -> np.ndarray:
        return model.eval()(torch.from_numpy(images)).numpy()

    np.testing.assert_allclose(logits_of(classify, samples, spec, batch_size=2), ours, atol=1e-6)


def test_what_validation_puts_into_the_card():
    dataset = make_dataset(12)
    labels = np.array([sample.label for sample in dataset.splits["validation"]])
    logits = np.eye(3, dtype=np.float32)[labels] * 3
    logits[0] = [0, 2, 1]  # one of twelve is wrong
    card = with_validation(make_card(), logits, dataset, engine="torch")
    card = with_validation(card, logits, dataset, engine="onnxruntime")
    assert [(m.dataset, m.split, m.n, m.top1) for m in card.inform.metrics] == [("tiny", "validation", 12, 11 / 12)]
    assert card.use.temperature == fit_temperature(logits, labels)
    assert card.use.reference.histogram == {"cat": 3, "dog": 5, "hen": 4}
    confidence = softmax(logits, card.use.temperature).max(axis=1).mean()
    assert card.use.reference.mean_confidence == pytest.approx(confidence)


def test_labels_must_be_the_cards():
    check_labels(make_card(("cat", "dog", "hen")), make_dataset())
    for labels in (("dog", "cat", "hen"), ("cat", "dog", "hen", "owl")):
        with pytest.raises(DataError, match="name the data it was trained on, or train it on this"):
            check_labels(make_card(labels), make_dataset())


def _answers(answers: list[int], classes: int = 4) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[answers]


def test_per_class_by_hand():
    truth = np.array([0, 0, 0, 0, 1, 1, 2])
    rows = per_class(_answers([0, 0, 0, 1, 1, 2, 1]), truth, ["ant", "bee", "cow", "dog"])
    assert [(row.label, row.n) for row in rows] == [("ant", 4), ("bee", 2), ("cow", 1), ("dog", 0)]
    assert [row.precision for row in rows] == pytest.approx([1, 1 / 3, 0, 0])
    assert [row.recall for row in rows] == pytest.approx([3 / 4, 1 / 2, 0, 0])
    assert [row.f1 for row in rows] == pytest.approx([6 / 7, 2 / 5, 0, 0])


def test_averages_count_every_class_the_same_and_absent_ones_not():
    rows = per_class(_answers([0, 0, 0, 1, 1, 2, 1]), np.array([0, 0, 0, 0, 1, 1, 2]), ["ant", "bee", "cow", "dog"])
    found = averages(rows)
    assert (found.classes, found.n) == (3, 7)
    assert (found.precision, found.recall, found.f1) == pytest.approx((4 / 9, 5 / 12, (6 / 7 + 2 / 5) / 3))
    assert averages(rows[:1]) == Averages(classes=1, n=4, precision=1, recall=0.75, f1=rows[0].f1)
    assert averages(rows[3:]) is None
    assert averages([]) is None


def test_ties_go_to_the_earlier_label_per_class_too():
    (first, second) = per_class(np.zeros((2, 2), np.float32), np.array([0, 1]), ["a", "b"])
    assert first == ClassMetrics(label="a", n=1, precision=0.5, recall=1, f1=pytest.approx(2 / 3))
    assert second.recall == 0


def test_calibration_error_by_hand():
    # Two bins: at 0.6 one of two is right, at 0.9 both are.
    chances = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.9, 0.1]], np.float32)
    truth = np.array([0, 1, 1, 0])
    assert calibration_error(chances, truth) == pytest.approx((2 * 0.1 + 2 * 0.1) / 4, abs=1e-6)
    assert calibration_error(chances, truth, bins=1) == pytest.approx(0, abs=1e-6)
    assert calibration_error(np.array([[1.0, 0], [1, 0]], np.float32), np.array([0, 1])) == pytest.approx(0.5)


def test_the_right_temperature_calibrates():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 4)).astype(np.float32) * 2
    truth = (generator.random((20_000, 1)) > softmax(logits).cumsum(axis=1)).sum(axis=1).clip(0, 3)
    assert calibration_error(softmax(logits), truth) < 0.015
    assert calibration_error(softmax(logits * 3), truth) > 0.1
    assert calibration_error(softmax(logits * 3, fit_temperature(logits * 3, truth)), truth) < 0.015


def test_which_labels_are_rare():
    dataset = dataclasses.replace(make_dataset(12), groups={"pets": ("dog", "cat")})
    assert rare_labels(dataset) == ()
    train = list(dataset.splits["train"])
    kept = [sample for sample in train if sample.label != 2] + [sample for sample in train if sample.label == 2][:1]
    few = dataclasses.replace(dataset, splits={**dataset.splits, "train": kept})
    assert rare_labels(few) == ("hen",)
    assert rare_labels(few, thinned=["dog"]) == ("dog",)
    assert rare_labels(few, thinned=["owl"]) == ("hen",)
    assert rare_labels(few, ["pets"], thinned=["hen"]) == ("cat", "dog")
    with pytest.raises(UsageError, match="unknown class or group of tiny 'pet'; did you mean pets"):
        rare_labels(few, ["pet"])
