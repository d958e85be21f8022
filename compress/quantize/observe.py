"""Running graphs that are not artefacts (yet), and looking at any of their tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto

from zoo.artefact.engines.runtimes import DISABLED
from zoo.base.machine import cores

__all__ = ["Feed", "Feeds", "logits", "observe", "session"]

Feed = Mapping[str, npt.NDArray[np.float32]]
"""A batch of preprocessed images: input name -> float32 [B, C, H, W]."""
Feeds = Sequence[Feed]


def session(model: ModelProto, *, exact: bool = False) -> ort.InferenceSession:
    """Run a graph on the CPU.

    Args:
        model: the graph.
        exact: as it is written: a QDQ graph computes what its codes mean, in floats, on every machine.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact:
        # Optimized, it would be integers.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(DISABLED)
    )


def observe(
    model: ModelProto,
    names: Iterable[str],
    feeds: Iterable[Feed],
    *,
    exact: bool = False,
    probes: Sequence[NodeProto] = (),
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Run a graph, and yield the named tensors of every batch.

    Args:
        model: not changed.
        names: of tensors, the graph's inputs included.
        feeds: batches.
        exact: see :func:`session`.
        probes: nodes that are added to the graph, whose outputs may be named, too.
    """
    watched = ModelProto()
    watched.CopyFrom(model)
    watched.graph.node.extend(probes)
    inputs = {value.name for value in model.graph.input}
    known = {value.name for value in model.graph.output}
    wanted = dict.fromkeys(names)
    given, fetch = [name for name in wanted if name in inputs], [name for name in wanted if name not in inputs]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in fetch if name not in known)
    runner = session(watched, exact=exact)
    del watched
    for feed in feeds:
        # Asked for nothing, ONNX Runtime answers everything.
        answers = runner.run(fetch, dict(feed)) if fetch else []
        yield dict(zip(fetch, answers, strict=True)) | {name: feed[name] for name in given}


def logits(model: ModelProto, feeds: Iterable[Feed]) -> npt.NDArray[np.float32]:
    """The first output of a graph, [N, K], over all batches."""
    runner = session(model)
    return np.concatenate([np.asarray(runner.run(None, dict(feed))[0], np.float32) for feed in feeds])
