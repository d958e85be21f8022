"""Tests of compress.quantize.sensitivity."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto

from compress.quantize import sensitivity as module
from compress.quantize.calibration import Batches, ranges
from compress.quantize.observe import logits
from compress.quantize.quantizer import prepare, quantizable, rectified, static, stems, to_calibrate, weighted
from compress.quantize.sensitivity import added_noise, fewest, sensitivity
from compress.quantize.targets import TARGETS
from tests.compress.graphs import exported
from tests.zoo.factories import make_input, make_samples


class Toy:
    """A quantized network, one of whose layers has a far too narrow range at its output."""

    def __init__(self, folder: Path) -> None:
        self.prepared = prepare(onnx.load(str(exported("cnn5", folder))))
        self.feeds = Batches(make_samples(16), make_input(32, "L"))
        self.bad = [node for node in weighted(self.prepared) if node.op_type == "Conv"][2]
        self.ranges = ranges(self.prepared, self.feeds, tensors=to_calibrate(self.prepared, TARGETS["portable"]))
        output = rectified(self.prepared).get(self.bad.output[0], self.bad.output[0])
        self.ranges[output].highest = np.array(0.05 * self.ranges[output].highest, np.float32)
        self.made: list[tuple[str, ...]] = []

    def make(self, floats: Collection[str]) -> ModelProto:
        self.made.append(tuple(floats))
        return static(self.prepared, self.ranges, TARGETS["portable"], floats=floats)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy(tmp_path_factory.mktemp("toy"))


def test_noise_comes_in_where_the_range_is_wrong(toy: Toy) -> None:
    noise = added_noise(toy.prepared, toy.make(()), toy.feeds)
    assert max(noise, key=lambda name: noise[name]) == toy.bad.name
    assert noise[toy.bad.name] > 0.3
    assert set(noise) <= {node.name for node in quantizable(toy.prepared)}
    assert set(noise) >= {node.name for node in weighted(toy.prepared)} - {node.name for node in stems(toy.prepared)}


def test_without_quantization_there_is_no_noise(toy: Toy) -> None:
    assert set(added_noise(toy.prepared, toy.prepared, toy.feeds).values()) == {0.0}


def test_costs_are_measured_from_the_noisiest_on_and_sorted(toy: Toy) -> None:
    toy.made.clear()
    found = sensitivity(toy.prepared, toy.make, toy.feeds)
    assert toy.made[:2] == [(), (toy.bad.name,)]
    assert len(toy.made) == 1 + len(found)
    costs = [entry.cost for entry in found]
    assert None not in costs
    assert costs == sorted(costs, key=lambda cost: -(cost or 0))
    assert {entry.node: entry.kind for entry in found}[toy.bad.name] == "Conv"


def test_a_node_in_float_saves_what_its_cost_says(toy: Toy) -> None:
    entry = next(entry for entry in sensitivity(toy.prepared, toy.make, toy.feeds) if entry.node == toy.bad.name)
    wanted = logits(toy.prepared, toy.feeds)
    losses = [module.divergence(wanted, logits(toy.make(floats), toy.feeds)) for floats in ((), (toy.bad.name,))]
    assert entry.cost == pytest.approx(losses[0] - losses[1])


def test_when_time_is_up_the_rest_stays_unmeasured(toy: Toy) -> None:
    found = sensitivity(toy.prepared, toy.make, toy.feeds, seconds=-1)
    assert {entry.cost for entry in found} == {None}
    # Then the noise alone gives the order.
    assert found[0].node == toy.bad.name


def test_unmeasured_nodes_come_after_those_that_cost_and_before_those_that_do_not(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock lets three nodes be measured, and losses are made up: the second node gains by being quantized."""
    losses = iter([1.0, 0.25, 1.5, 1.0])
    ticks = iter([0.0, 1.0, 2.0, 3.0, 500.0])
    monkeypatch.setattr(module, "divergence", lambda *_: next(losses))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    noise = added_noise(toy.prepared, toy.make(()), toy.feeds[:2])
    order = sorted(noise, key=lambda name: -noise[name])
    found = sensitivity(toy.prepared, toy.make, toy.feeds)
    assert [entry.cost for entry in found] == [0.75, 0.0, *[None] * (len(order) - 3), -0.5]
    assert [entry.node for entry in found] == [order[0], order[2], *order[3:], order[1]]


@given(count=st.integers(1, 200), needed=st.integers(1, 250))
def test_fewest_finds_the_smallest_number_in_few_steps(count: int, needed: int) -> None:
    asked: list[int] = []

    def holds(number: int) -> bool:
        assert 1 <= number <= count
        asked.append(number)
        return number >= needed

    assert fewest(count, holds) == (needed if needed <= count else None)
    assert len(asked) <= 2 * count.bit_length() + 1
    assert len(asked) == len(set(asked))
