"""Tests of compress.quantize.float16."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from compress.quantize.float16 import check_activations, halve
from compress.quantize.observe import session
from tests.zoo.factories import make_graph
from zoo.base.errors import ArtefactError, CheckError


def test_half_the_bytes_and_the_same_answers_with_float32_in_and_out() -> None:
    model = make_graph(labels=200)
    before = model.SerializeToString()
    half = halve(model)
    onnx.checker.check_model(half)
    assert model.SerializeToString() == before
    assert [tensor.data_type for tensor in half.graph.initializer] == [TensorProto.FLOAT16]
    for value in (*half.graph.input, *half.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
    (wanted,), (found,) = (session(graph).run(None, {"image": images}) for graph in (model, half))
    assert found.dtype == np.float32
    assert 0 < np.abs(wanted - found).max() < 2e-3 * np.abs(wanted).max()


def test_weights_that_would_overflow_are_refused_by_name() -> None:
    model = make_graph()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((3, 3), 1e6, np.float32), "weight"))
    with pytest.raises(ArtefactError, match=r"weights weight reach 1e\+06, float16 ends at 65504"):
        halve(model)


def test_a_graph_without_float_weights_is_refused() -> None:
    model = make_graph()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((3, 3), np.int8), "weight"))
    with pytest.raises(ArtefactError, match="no float32 weights to halve"):
        halve(model)


def test_activations_that_would_overflow_are_refused_by_name() -> None:
    model = make_graph()
    feeds = [{"image": np.full((1, 3, 32, 32), value, np.float32)} for value in (1.0, 6e4)]
    check_activations(model, feeds[:1])
    with pytest.raises(CheckError, match=r"activation logits reaches .*, float16 ends at 65504"):
        check_activations(model, feeds)
