"""The last steps of whatever writes an ONNX file: run it, record what it answers, write it."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnx import ModelProto

from zoo.artefact import onnx_file as graph
from zoo.artefact.card import Card
from zoo.artefact.predictor import Predictor, draw_golden
from zoo.data.dataset import Dataset
from zoo.training.evaluate import logits_of, with_validation

__all__ = ["CPU", "publish"]

CPU = ("CPUExecutionProvider",)
"""Published numbers are recorded on the CPU, whose kernels every consumer has."""


def publish(
    model: ModelProto,
    card: Card,
    target: Path,
    *,
    dataset: Dataset | None,
    begin: float | None = None,
    check: Callable[[Predictor], Mapping[str, Any]] = lambda predictor: {},
) -> Card:
    """Write an ONNX file whose card tells what the file itself computed.

    The model is run from a scratch file first: validation accuracy, temperature and the golden answer are recorded,
    and it is loaded once more with all its checks. Then it is written to `target` atomically.

    Args:
        model: the graph.
        card: without metrics and golden answer.
        target: ONNX file to write.
        dataset: its validation split measures the graph.
        begin: when the stage of the card's last lineage entry began, in seconds of time.perf_counter; None: no stage
            made this file, only its card has changed, and the lineage stays.
        check: may refuse the graph; what it returns joins the summary of the last lineage entry.

    Returns:
        The card as written.

    Raises:
        CardError, ArtefactError, CheckError: the file would not be usable; `target` is untouched.
    """
    model = graph.strip_traces(model)
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / target.name
        card = graph.write(model, card, draft)
        predictor = Predictor(draft, check=False, providers=CPU)
        found = check(predictor)
        if dataset:
            logits = logits_of(predictor.logits, dataset.splits["validation"], card.use.input)
            card = with_validation(card, logits, dataset)
            # The golden answer is a probability, so it is drawn with the temperature it will be served with.
            graph.write(model, card, draft)
            predictor = Predictor(draft, check=False, providers=CPU)
        card = dataclasses.replace(card, use=dataclasses.replace(card.use, golden=draw_golden(predictor)))
        if begin is not None:
            *earlier, entry = card.lineage
            seconds = round(time.perf_counter() - begin, 1)
            entry = dataclasses.replace(entry, summary={**entry.summary, **found}, seconds=seconds)
            card = dataclasses.replace(card, lineage=(*earlier, entry))
        graph.write(model, card, draft)
        Predictor(draft, providers=CPU)
    return graph.write(model, card, target)
