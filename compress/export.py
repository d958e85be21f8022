"""Checkpoint to ONNX, with proof that both compute the same."""

from __future__ import annotations

import logging
import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import nn

from compress.write_graph import publish
from zoo.artefact.card import Card, Input, LineageEntry, advance, allow
from zoo.artefact.predictor import Predictor
from zoo.artefact.preprocess import golden_image, preprocess
from zoo.base.errors import ArtefactError, CheckError
from zoo.base.files import code_commit, sha256_file
from zoo.data.dataset import Dataset
from zoo.networks.checkpoint import load

__all__ = ["LARGEST_FILE", "PARITY_BATCHES", "PARITY_TOLERANCE", "export", "to_onnx"]

PARITY_BATCHES = (1, 2, 7)
PARITY_TOLERANCE = 1e-4
"""How far logits may be off, as a share of the largest one (of 1, where all are smaller): float32 rounds relatively."""

LARGEST_FILE = 2**31 - 2**24
"""Bytes of weights: protobuf's messages end at 2 GiB, of which the graph itself needs some."""


def export(source: Path, target: Path, *, dataset: Dataset | None = None) -> Card:
    """Export a checkpoint to an ONNX file with a symbolic batch dimension.

    Args:
        source: merged checkpoint.
        target: ONNX file to write.
        dataset: its validation split measures the exported graph.

    Returns:
        The card as written.

    Raises:
        ArtefactError: wrong stage, or a network that torch cannot export or that is too large for one file.
        CheckError: torch and ONNX Runtime differ by more than PARITY_TOLERANCE at one of PARITY_BATCHES.
    """
    begin = time.perf_counter()
    model, card = load(source)
    allow(card, "export")
    proto = to_onnx(model, card)
    entry = LineageEntry(stage="export", config={}, parent=sha256_file(source), commit=code_commit())

    def check(predictor: Predictor) -> dict[str, Any]:
        worst = _parity(model, predictor, card.use.input)
        return {"parity": float(f"{worst:.2g}"), "batches": list(PARITY_BATCHES)}

    return publish(proto, advance(card, entry), target, dataset=dataset, begin=begin, check=check)


def to_onnx(model: nn.Module, card: Card) -> ModelProto:
    """The ONNX graph of a torch model: float32 [batch, C, H, W] to logits [batch, K].

    Raises:
        ArtefactError: torch cannot export it, or the file would be too large.
    """
    _check_size(model, card)
    # A batch of one would be taken for a constant by the tracer.
    example = torch.zeros(2, *card.use.input.shape)
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # With gradients torch traces another kind of attention where its bias is learnt (vision_transformer_relpos), which
    # it then cannot take apart.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return _translate(model.eval(), example, card)
        except Exception as error:  # the exporter raises many types of its own
            fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
            if "only 4D query" not in _reason(error) or not fused:
                raise _refusal(card, error) from error
        try:
            # torch's attention over windows of windows (Twins, NesT) has no translation; timm's, step by step, has.
            for module in fused:
                module.fused_attn = False  # type: ignore[assignment]
            return _translate(model, example, card)
        except Exception as error:
            raise _refusal(card, error) from error
        finally:
            for module in fused:
                module.fused_attn = True  # type: ignore[assignment]


def _check_size(model: nn.Module, card: Card) -> None:
    """Check, before any work, that the weights fit into the single file that an artefact is."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > LARGEST_FILE:
        count = sum(parameter.numel() for parameter in model.parameters())
        raise ArtefactError(
            f"{card.name}: expected weights of at most {LARGEST_FILE / 2**30:.1f} GiB, what one ONNX file holds, "
            f"got {size / 2**30:.1f} GiB ({count:,} parameters); prune it, or take a smaller architecture"
        )


def _translate(model: nn.Module, example: torch.Tensor, card: Card) -> ModelProto:
    program = torch.onnx.export(
        model,
        (example,),
        input_names=[card.use.input.name],
        output_names=[card.use.output.name],
        dynamic_shapes=({0: "batch"},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    proto: ModelProto = program.model_proto
    return proto


def _refusal(card: Card, error: Exception) -> ArtefactError:
    return ArtefactError(
        f"torch cannot export {card.build.architecture}: {_reason(error)}; it can be trained and evaluated, but not "
        "served: another architecture is needed for that"
    )


def _reason(error: BaseException) -> str:
    """The first line of what an exporter's error came from, without its advice to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _parity(model: nn.Module, predictor: Predictor, spec: Input) -> float:
    """The largest difference between the two runtimes' logits, as a share of the largest logit of its batch or of 1.

    Compared are noise and an image with edges.
    """
    noise = np.random.default_rng(0)
    worst = 0.0
    for size in PARITY_BATCHES:
        images = noise.standard_normal((size, *spec.shape), dtype=np.float32)
        images[0] = preprocess(golden_image(size), spec)
        with torch.inference_mode():
            wanted = model(torch.from_numpy(images)).numpy()
        largest = max(1.0, float(np.abs(wanted).max()))
        difference = float(np.abs(predictor.logits(images) - wanted).max())
        if not difference <= PARITY_TOLERANCE * largest < math.inf:
            raise CheckError(
                f"{predictor.card.name}: torch and ONNX Runtime differ by {difference:.2g} at batch {size}, at most "
                f"{PARITY_TOLERANCE * largest:.2g} is allowed (the largest is {largest:.2g}); the graph was not written"
            )
        worst = max(worst, difference / largest)
    return worst
