"""Files of a network's graph for a viewer like Netron (https://github.com/lutzroeder/netron): ONNX and TorchScript.

TorchScript is deprecated in torch 2.15 in favour of torch.export, whose files Netron shows without their structure; it
is written here to be looked at, while ONNX is what is served.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from zoo.artefact.card import KEY, Card, to_json
from zoo.artefact.onnx_file import load as load_graph
from zoo.base.errors import ArtefactError, CheckError, UsageError
from zoo.base.files import GRAPH, HALF_GRAPH, INT8_GRAPH, write_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["TOLERANCE", "count_shapes", "write_shaped", "write_torchscript"]

TOLERANCE = 1e-4
"""Largest difference between the logits of a network and of its trace; that of compress.export."""

_BATCHES = (1, 2, 7)


def count_shapes(path: Path) -> tuple[int, int]:
    """How many of an ONNX file's values between nodes have a stored shape, and how many there are.

    Raises:
        ArtefactError, CardError, CheckError: see zoo.artefact.onnx_file.load.
    """
    return _count_shapes(load_graph(path)[0])


def _count_shapes(model: onnx.ModelProto) -> tuple[int, int]:
    ends = {value.name for value in model.graph.output}
    between = {name for node in model.graph.node for name in node.output if name and name not in ends}
    shaped = {value.name for value in model.graph.value_info if value.type.tensor_type.HasField("shape")}
    return len(between & shaped), len(between)


def write_shaped(path: Path, out: Path) -> tuple[int, int]:
    """Write a copy of an ONNX file, card included, that stores the inferred shapes of the values between its nodes.

    Args:
        path: the file; it stays as it is.
        out: the copy.

    Returns:
        How many values have a shape in the copy, and how many there are.

    Raises:
        UsageError: both are the same file, or `out` has the name of an artefact's file.
        ArtefactError, CardError, CheckError: see zoo.artefact.onnx_file.load.
    """
    if out.exists() and out.samefile(path):
        raise UsageError(f"--out {out}: this is the artefact itself, which stays as it is; name another file")
    if out.name in (GRAPH, INT8_GRAPH, HALF_GRAPH):
        raise UsageError(f"--out {out}: {out.name} is what an artefact's file is called; give the copy another name")
    model = load_graph(path)[0]
    try:
        shaped = onnx.shape_inference.infer_shapes(model, data_prop=True)
        onnx.checker.check_model(shaped)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise ArtefactError(f"{path}: onnx cannot infer its shapes: {error}") from error
    write_bytes(out, shaped.SerializeToString(deterministic=True))
    return _count_shapes(shaped)


def write_torchscript(model: nn.Module, card: Card, out: Path) -> float:
    """Trace a network, check the trace, and write it as a TorchScript file that holds the card.

    The card is read again with `extra = {"zoo.card": ""}; torch.jit.load(out, _extra_files=extra)`.

    Args:
        model: in evaluation mode, on the CPU.
        card: its card.
        out: the file.

    Returns:
        The largest difference between the logits of the network and of its trace, for batches of one, two and seven
        golden images.

    Raises:
        ArtefactError: torch cannot trace the network.
        CheckError: the trace answers otherwise, by more than TOLERANCE; nothing is written.
    """
    import torch

    try:
        with _known_warnings(), torch.inference_mode():
            # A batch of one would be taken for a constant by some networks.
            example = torch.zeros(2, *card.use.input.shape)
            traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
            worst = max(_difference(model, traced, card, count) for count in _BATCHES)
    except RuntimeError as error:
        raise ArtefactError(f"torch cannot trace {card.build.architecture}: {error}") from error
    if not worst <= TOLERANCE:
        raise CheckError(
            f"{card.name}: the network and its trace differ by {worst:.2g}, at most {TOLERANCE} is allowed; "
            "nothing was written, look at its ONNX file instead"
        )
    # Into memory first: torch ends the process when it cannot write to the disk.
    stream = io.BytesIO()
    with _known_warnings():
        torch.jit.save(traced, stream, _extra_files={KEY: to_json(card)})
    write_bytes(out, stream.getvalue())
    return worst


def _difference(model: nn.Module, traced: torch.jit.ScriptModule, card: Card, count: int) -> float:
    import numpy as np
    import torch

    from zoo.artefact.preprocess import golden_image, preprocess

    images = torch.from_numpy(np.stack([preprocess(golden_image(seed), card.use.input) for seed in range(count)]))
    return float((model(images) - traced(images)).abs().max())


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Without the two warnings that are answered here: the check is the answer to constants, see above to the other."""
    from torch.jit._trace import TracerWarning

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", category=TracerWarning)
        yield
