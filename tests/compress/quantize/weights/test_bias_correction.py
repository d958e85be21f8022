"""Tests of compress.quantize.weights.bias_correction."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper

from compress.quantize.observe import observe
from compress.quantize.qdq_layers import Graph, layers
from compress.quantize.weights import bias_correction
from compress.quantize.weights.bias_correction import _shrunk, correct
from tests.compress.qdq_graphs import Floats, arrays, blocks, correlated, error, feeds, int8, make, run, weights


@pytest.fixture(scope="module")
def images() -> Floats:
    return correlated(64, 16)


def planted(model: ModelProto, parent: ModelProto, name: str, shift: Floats) -> ModelProto:
    out = ModelProto()
    out.CopyFrom(model)
    graph = Graph(out)
    layer = next(layer for layer in layers(graph, Graph(parent)) if layer.node.name == name)
    assert layer.float_bias is not None
    layer.store_bias(graph, layer.float_bias + shift, graph.array(layer.scale))
    return out


def test_a_planted_shift_is_removed(images: Floats) -> None:
    parent = blocks()
    good = int8(parent, images)
    shift = np.linspace(-0.3, 0.3, 16, dtype=np.float32)
    bad = planted(good, parent, "c2", shift)
    fixed = correct(bad, parent, feeds(images))
    offsets = [(run(model, images) - run(parent, images)).mean(axis=(0, 2, 3)) for model in (good, bad, fixed)]
    assert np.abs(offsets[1] - offsets[0] - shift).max() < 0.05
    assert np.abs(offsets[2]).max() < 0.02


def test_every_layer_gets_the_mean_of_the_parent(images: Floats) -> None:
    parent = blocks(3)
    fixed = correct(planted(int8(parent, images), parent, "c0", np.full(16, 0.2, np.float32)), parent, feeds(images))
    for layer in layers(Graph(fixed), Graph(parent)):
        (wanted,) = observe(parent, [layer.output], feeds(images, 64), exact=True)
        (got,) = observe(fixed, [layer.node.output[0]], feeds(images, 64), exact=True)
        means = [values.mean(axis=(0, 2, 3)) for values in (wanted[layer.output], got[layer.node.output[0]])]
        assert np.abs(means[0] - means[1]).max() < 0.1 * wanted[layer.output].std()


def test_deep_graphs_come_closer_to_the_parent_on_other_images(images: Floats) -> None:
    parent, fresh = blocks(4), correlated(32, 16, seed=1)
    plain = int8(parent, images)
    assert error(correct(plain, parent, feeds(images)), parent, fresh) < error(plain, parent, fresh)


def test_no_more_images_are_read_than_are_used(images: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(list[dict[str, Floats]]):
        reads = 0

        def __iter__(self) -> Iterator[dict[str, Floats]]:
            for feed in super().__iter__():
                self.reads += 1
                yield feed

    parent = blocks()
    counted = Counted(feeds(np.concatenate([images, images])))
    correct(int8(parent, images), parent, counted)
    assert (len(counted), counted.reads) == (8, 4)
    # What is kept of images that are large is large.
    monkeypatch.setattr(bias_correction, "at_once", lambda size, *, most: 1)
    correct(int8(parent, images), parent, counted)
    assert counted.reads == 4 + 1


def test_of_weights_no_more_is_kept_than_one_layer_reads(images: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    """As floats those of all layers would be, once for every batch."""
    parent = blocks()
    plain = int8(parent, images)
    graph = Graph(plain)
    made = {layer.node.input[1] for layer in layers(graph, Graph(parent))}
    kept: list[set[str]] = []
    advance = bias_correction._advance

    def watched(
        graph: Graph, nodes: list[NodeProto], start: int, name: str, states: list[bias_correction.State]
    ) -> int:
        stop = advance(graph, nodes, start, name, states)
        kept.append(made & set(states[0]))
        return stop

    monkeypatch.setattr(bias_correction, "_advance", watched)
    correct(plain, parent, feeds(images))
    assert len(made) == len(kept) > 2 and not any(kept)


def test_only_biases_change_and_nothing_without_images(images: Floats) -> None:
    parent = blocks()
    plain = int8(parent, images)
    before = plain.SerializeToString(deterministic=True)
    fixed = correct(plain, parent, feeds(images))
    assert plain.SerializeToString(deterministic=True) == before
    assert correct(plain, parent, []) == plain
    assert list(fixed.graph.node) == list(plain.graph.node)
    stored = arrays(plain), arrays(fixed)
    changed = {name for name in stored[0] if not np.array_equal(stored[0][name], stored[1][name])}
    assert changed
    assert changed <= {f"c{index}.b_quantized" for index in range(3)}


def test_residual_branches_are_carried_along(images: Floats) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "v", "c"], ["d"], name="second"),
        helper.make_node("Add", ["d", "x"], ["y"], name="add"),
    ]
    tensors = {"w": weights((16, 16, 1, 1), 0), "b": weights((16,), 1), "v": weights((16, 16, 1, 1), 2)}
    parent = make(nodes, tensors | {"c": weights((16,), 3)}, shape=["n", 16, 6, 6])
    plain = planted(int8(parent, images), parent, "first", np.full(16, 0.3, np.float32))
    assert error(correct(plain, parent, feeds(images)), parent, images) < error(plain, parent, images) / 3


def test_layers_without_bias_stay(images: Floats) -> None:
    parent = make(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        {"w": weights((16, 16, 1, 1), 0)},
        shape=["n", 16, 6, 6],
    )
    plain = int8(parent, images)
    assert correct(plain, parent, feeds(images)) == plain


def test_shifts_that_may_be_chance_shrink() -> None:
    random = np.random.default_rng(0)
    noise = random.standard_normal((64, 1000)).astype(np.float32)
    assert (_shrunk(noise) ** 2).mean() < (noise.mean(axis=0) ** 2).mean() / 2
    clear = noise + np.float32(5)
    assert np.allclose(_shrunk(clear), clear.mean(axis=0), rtol=2e-3)
    assert _shrunk(np.full((1, 2), 3, np.float32)).tolist() == [3, 3]
