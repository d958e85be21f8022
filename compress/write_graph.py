"""The last steps of whatever writes an ONNX file: run it, record what it answers, write it."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
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
from zoo.artefact.preprocess import at_once, normalise
from zoo.base.errors import ArtefactError
from zoo.base.files import write_atomically
from zoo.base.machine import cores, give_back_freed_memory
from zoo.base.progress import note, track
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages
from zoo.training.evaluate import with_engine, with_validation

__all__ = ["AGREEMENT", "CPU", "publish"]

AGREEMENT = {"openvino": 0.06, "openvino-bf16": 0.1}
"""How far an engine's logits may be from ONNX Runtime's on average, as a share of their standard deviation.

Measured: 1e-6 in FP32. In INT8 0.003 to 0.032 (EfficientNet-Lite0, where each engine is as far from what the graph
says, and so is that itself once its input moves by 1e-7: rounding flips codes, layer by layer; and OpenVINO adds a
residual before it rounds, tests/compress/quantize/test_engines_agree.py), but more than 0.1 where it computes an INT8
stem coarsely. In bfloat16, which only answers where it is asked for by name, 0.014 to 0.033.
"""

_ALL_WRONG = 1e6
_CACHE_BYTES = 1 << 30
_EVALUATED_AT_ONCE = 64

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
        card, found = _recorded(draft, graph.write(model, card, draft), dataset, check)
        give_back_freed_memory()
        if begin is not None:
            *earlier, entry = card.lineage
            seconds = round(time.perf_counter() - begin, 1)
            entry = dataclasses.replace(entry, summary={**entry.summary, **found}, seconds=seconds)
            card = dataclasses.replace(card, lineage=(*earlier, entry))
        card = graph.write(model, card, draft)
        Predictor(draft, providers=CPU)
        assert card.use.golden is not None
        if AUTOMATIC in card.use.golden.engines and not preference(os.environ.get(VARIABLE, "")):
            # Measures which engine is faster here, and remembers it for everything that loads these bytes.
            Predictor(draft)
        write_atomically(target, lambda temporary: shutil.copyfile(draft, temporary))
    return card


def _recorded(
    draft: Path, card: Card, dataset: Dataset | None, check: Callable[[Predictor], Mapping[str, Any]]
) -> tuple[Card, dict[str, Any]]:
    """The card with what the engines answer, and what joins the lineage.

    One engine is loaded at a time, since each holds the weights several times; the images are decoded once where they
    fit into memory.
    """
    compared = _Compared(card, dataset)
    reference = Predictor(draft, check=False, providers=CPU)
    found = dict(check(reference))
    wanted = compared.logits(reference.logits)
    if dataset:
        card = with_validation(card, wanted, dataset, engine=REFERENCE)
    # The golden answer is a probability, so it is drawn with the temperature it will be served with.
    golden = draw_golden(reference.logits, card)
    del reference
    told: dict[str, Any] = {}
    for name in _others():
        give_back_freed_memory()
        try:
            engine = _loaded(name, draft, card)
        except (ArtefactError, RuntimeError) as error:  # OpenVINO's own errors are RuntimeErrors
            told[name] = " ".join(str(error).split())[-200:]
            note(f"{card.name}: {name} gets no golden answer: {told[name]}")
            continue
        logits = compared.logits(engine.logits)
        difference = _difference(wanted, logits)
        told[name] = float(f"{difference:.2g}")
        if _agrees(card, name, difference):
            if dataset:
                card = with_engine(card, logits, dataset, engine=name)
            golden = add_engine(golden, engine, card)
        del engine
    if told:
        found["engines"] = told
    return dataclasses.replace(card, use=dataclasses.replace(card.use, golden=golden)), found


def _others() -> list[str]:
    """The installed engines besides ONNX Runtime that POCKETZOO_ENGINE allows: what may not answer is not asked."""
    allowed = preference(os.environ.get(VARIABLE, "")) or OTHERS
    return [name for name in OTHERS if name in allowed and not lacking(name)]


def _loaded(name: str, path: Path, card: Card) -> Engine:
    """An engine that can run a file, for one image and for several."""
    engine = ENGINES[name](path, card, How(threads=cores()))
    images = candidates(card)[:2]
    for size in (1, 2):
        engine.logits(images[:size])
    return engine


class _Compared:
    """The validation images, or without a data set drawn ones, for one engine after the other."""

    def __init__(self, card: Card, dataset: Dataset | None) -> None:
        self._card, self._spec = card, card.use.input
        self._images: DecodedImages | None = None
        if dataset:
            self._images = DecodedImages(dataset.splits["validation"], self._spec, cache_bytes=_CACHE_BYTES)

    def logits(self, run: Classifier) -> Logits:
        """What an engine answers to them, [N, K]."""
        if self._images is None:
            return run(candidates(self._card))
        size = at_once(self._spec.size, most=_EVALUATED_AT_ONCE)
        batches = track(
            self._images.in_order(size), total=math.ceil(len(self._images) / size), description="Evaluating"
        )
        # [B, H, W, C], as decoded.
        decoded = (np.moveaxis(images.numpy(), 1, -1) for images, _ in batches)
        return np.concatenate([run(normalise(images, self._spec)) for images in decoded])


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
