"""Tests of compress.quantize.observe."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from compress.quantize.observe import logits, observe
from tests.compress.qdq_graphs import blocks, correlated, int8, run


@pytest.mark.parametrize("exact", [False, True])
def test_inputs_and_inner_tensors_of_each_batch(exact: bool) -> None:
    parent, images = blocks(), correlated(5, 16)
    answers = list(observe(parent, ["x", "c0.raw", "y", "y"], [{"x": images[:3]}, {"x": images[3:]}], exact=exact))
    assert [sorted(answer) for answer in answers] == [["c0.raw", "x", "y"]] * 2
    assert np.array_equal(np.concatenate([answer["x"] for answer in answers]), images)
    assert np.allclose(np.concatenate([answer["y"] for answer in answers]), run(parent, images), atol=1e-6)
    assert [output.name for output in parent.graph.output] == ["y"]


def test_nothing_but_inputs_needs_no_answers() -> None:
    images = correlated(2, 16)
    (answer,) = observe(blocks(), ["x"], [{"x": images}])
    assert list(answer) == ["x"]


def test_probes_look_at_tensors_in_the_graph() -> None:
    parent, images = blocks(), correlated(5, 16)
    largest = helper.make_node("ReduceMax", ["c0.raw"], ["largest"], keepdims=0)
    (answer,) = observe(parent, ["c0.raw", "largest"], [{"x": images}], probes=[largest])
    assert answer["largest"] == answer["c0.raw"].max()
    assert "largest" not in [name for node in parent.graph.node for name in node.output]


def test_exact_is_what_the_codes_mean_and_logits_what_the_machine_makes_of_them() -> None:
    parent, images = blocks(), correlated(5, 16)
    quantized = int8(parent, images)
    (answer,) = observe(quantized, ["y"], [{"x": images}], exact=True)
    assert np.array_equal(answer["y"], run(quantized, images))
    found = logits(quantized, [{"x": images[:2]}, {"x": images[2:]}])
    assert found.shape == answer["y"].shape
    assert np.abs(found - answer["y"]).max() < 0.1 * np.abs(answer["y"]).max()
