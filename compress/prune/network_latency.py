"""The latency that a network would have: exported to a scratch file and timed in ONNX Runtime on this machine."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from torch import nn

from compress.export import to_onnx
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import Build, Card, Inform, Input, Use
from zoo.artefact.latency import LatencyConfig, latencies

__all__ = ["network_ms"]


def network_ms(model: nn.Module, spec: Input) -> float:
    """Median milliseconds of one image, all cores, over several processes; exports the network first (seconds).

    Raises:
        ArtefactError: torch cannot export it.
    """
    with torch.inference_mode():
        classes = model.eval()(torch.zeros(2, *spec.shape)).shape[1]
    card = Card(
        name="draft",
        build=Build(architecture=type(model).__name__),
        use=Use(labels=tuple(str(index) for index in range(classes)), input=spec),
        inform=Inform(parameters=0, macs=0, bytes=0),
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "draft.onnx"
        graph.write(graph.strip_traces(to_onnx(model, card)), card, path)
        rounds = latencies([path], LatencyConfig())[path]
    return statistics.median(statistics.median(samples) for samples in rounds)
