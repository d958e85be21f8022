"""The last steps of whatever writes an ONNX file: run it, record what it answers, write it."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from zoo.artefact import onnx_file as graph
from zoo.artefact.card import Card
from zoo.artefact.engines.choice import AUTOMATIC, VARIABLE
from zoo.artefact.engines.golden import add_engine, candidates, draw_golden
from zoo.artefact.engines.runtimes import ENGINES, OTHERS, REFERENCE, Engine, How, lacking, preference
from zoo.artefact.predictor import Predictor
from zoo.base.errors import ArtefactError
from zoo.base.machine import cores
from zoo.base.progress import note
from zoo.data.dataset import Dataset
from zoo.training.evaluate import logits_of, with_engine, with_validation

__all__ = ["AGREEMENT", "CPU", "publish"]

AGREEMENT = {"openvino": 0.06, "openvino-bf16": 0.1}
"""How far an engine's logits may be from ONNX Runtime's on average, as a share of their standard deviation.

Measured: 1e-6 in FP32. In INT8 0.003 to 0.032 (EfficientNet-Lite0, where each engine is as far from what the graph
says, and so is that itself once its input moves by 1e-7: rounding flips codes, layer by layer), but more than 0.1 where
OpenVINO computes an INT8 stem coarsely. In bfloat16, which only answers where it is asked for by name, 0.014 to 0.033.
"""

_ALL_WRONG = 1e6

Logits = npt.NDArray[np.float32]
Classifier = Callable[[Logits], Logits]

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
        reference = Predictor(draft, check=False, providers=CPU)
        found = dict(check(reference))
        others, refused = _others(draft, card)
        runners = {REFERENCE: reference.logits} | {engine.name: engine.logits for engine in others}
        logits = _logits(runners, card, dataset)
        differences = {engine.name: _difference(logits[REFERENCE], logits[engine.name]) for engine in others}
        others = [engine for engine in others if _agrees(card, engine.name, differences[engine.name])]
        if dataset:
            card = with_validation(card, logits[REFERENCE], dataset, engine=REFERENCE)
            for engine in others:
                card = with_engine(card, logits[engine.name], dataset, engine=engine.name)
        # The golden answer is a probability, so it is drawn with the temperature it will be served with.
        golden = draw_golden(reference.logits, card)
        for engine in others:
            golden = add_engine(golden, engine, card)
        card = dataclasses.replace(card, use=dataclasses.replace(card.use, golden=golden))
        if told := refused | {name: float(f"{share:.2g}") for name, share in differences.items()}:
            found["engines"] = told
        if begin is not None:
            *earlier, entry = card.lineage
            seconds = round(time.perf_counter() - begin, 1)
            entry = dataclasses.replace(entry, summary={**entry.summary, **found}, seconds=seconds)
            card = dataclasses.replace(card, lineage=(*earlier, entry))
        graph.write(model, card, draft)
        Predictor(draft, providers=CPU)
        if AUTOMATIC in golden.engines and not preference(os.environ.get(VARIABLE, "")):
            # Measures which engine is faster here, and remembers it for everything that loads these bytes.
            Predictor(draft)
    return graph.write(model, card, target)


def _others(path: Path, card: Card) -> tuple[list[Engine], dict[str, str]]:
    """The installed engines besides ONNX Runtime that can run a file, and why others cannot.

    Of those that POCKETZOO_ENGINE allows: what may not answer here is not asked.
    """
    engines: list[Engine] = []
    refused: dict[str, str] = {}
    images = candidates(card)[:2]
    allowed = preference(os.environ.get(VARIABLE, "")) or OTHERS
    for name in OTHERS:
        if name not in allowed or lacking(name):
            continue
        try:
            engine = ENGINES[name](path, card, How(threads=cores()))
            for size in (1, 2):
                engine.logits(images[:size])
        except (ArtefactError, RuntimeError) as error:  # OpenVINO's own errors are RuntimeErrors
            refused[name] = " ".join(str(error).split())[-200:]
            note(f"{card.name}: {name} gets no golden answer: {refused[name]}")
        else:
            engines.append(engine)
    return engines, refused


def _logits(runners: Mapping[str, Classifier], card: Card, dataset: Dataset | None) -> dict[str, Logits]:
    """What each engine answers to the validation images, or without a data set to drawn ones: name -> [N, K]."""

    def classify(images: Logits) -> Logits:
        return np.concatenate([run(images) for run in runners.values()], axis=1)

    if dataset:
        joined = logits_of(classify, dataset.splits["validation"], card.use.input)
    else:
        joined = classify(candidates(card))
    return dict(zip(runners, np.split(joined, len(runners), axis=1), strict=True))


def _difference(wanted: Logits, found: Logits) -> float:
    """Mean distance of logits as a share of the standard deviation of those that are wanted."""
    share = float(np.abs(found - wanted).mean() / max(float(wanted.std()), 1e-12))
    # A card holds no NaN.
    return share if share < _ALL_WRONG else _ALL_WRONG


def _agrees(card: Card, name: str, difference: float) -> bool:
    if difference <= AGREEMENT[name]:
        return True
    note(
        f"{card.name}: {name} gets no golden answer, so it will not answer: its logits are off by {difference:.1%} of "
        f"their standard deviation on average, at most {AGREEMENT[name]:.0%} is allowed"
    )
    return False
