"""cnn5: its closed formulas against the network itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.zoo.factories import make_input
from zoo.base.errors import UsageError
from zoo.networks.own.cnn5 import ACTIVATIONS, Cnn5Arguments, macs_of, parameters_of, smallest_of
from zoo.networks.registry import build, count_macs, input_for


@st.composite
def _arguments(draw: st.DrawFn) -> Cnn5Arguments:
    kernels = st.integers(1, 5)
    kernel = draw(st.one_of(kernels, st.tuples(*[kernels] * 5)))
    padding = draw(st.sampled_from(["same", "valid", 0, 1, 3]))
    smallest = smallest_of(Cnn5Arguments(kernel=kernel, padding=padding, img_size=10_000))
    return Cnn5Arguments(
        filters=draw(st.integers(1, 6)),
        growth=draw(st.sampled_from(["equal", "double", "halve"])),
        kernel=kernel,
        padding=padding,
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        batch_norm=draw(st.booleans()),
        dense=draw(st.integers(1, 9)),
        img_size=smallest + draw(st.integers(0, 9)),
    )


def _built(arguments: Cnn5Arguments, classes: int = 3, channels: int = 1) -> nn.Module:
    given_ = dataclasses.asdict(arguments)
    # As a card or a recipe has them.
    given_["kernel"] = list(arguments.kernel) if isinstance(arguments.kernel, tuple) else arguments.kernel
    return build("cnn5", classes=classes, channels=channels, arguments=given_)


@settings(max_examples=40)
@given(_arguments(), st.integers(2, 5), st.sampled_from([1, 3]))
def test_formulas_count_what_is_built(arguments, classes, channels):
    model = _built(arguments, classes, channels)
    spec = make_input(arguments.img_size, "L" if channels == 1 else "RGB")
    assert parameters_of(arguments, classes=classes, channels=channels) == sum(p.numel() for p in model.parameters())
    assert macs_of(arguments, classes=classes, channels=channels) == count_macs(model, spec)
    assert model.eval()(torch.zeros(2, *spec.shape)).shape == (2, classes)


@settings(max_examples=25)
@given(_arguments())
def test_one_pixel_less_than_the_smallest_is_refused(arguments):
    smallest = smallest_of(arguments)
    model = _built(dataclasses.replace(arguments, img_size=smallest))
    assert model.eval()(torch.zeros(1, 1, smallest, smallest)).shape == (1, 3)
    if smallest > 1:
        with pytest.raises(
            UsageError, match=rf"needs at least {smallest} pixels, got arguments.img_size={smallest - 1}"
        ):
            dataclasses.replace(arguments, img_size=smallest - 1)
        with pytest.raises(RuntimeError):
            model.features(torch.zeros(1, 1, smallest - 1, smallest - 1))


def test_a_case_counted_by_hand():
    arguments = Cnn5Arguments(filters=2, growth="double", kernel=3, dense=5, img_size=32, batch_norm=True)
    # Widths 2, 4, 8, 16, 32; one pixel is left of 32.
    convolutions = 9 * (1 * 2 + 2 * 4 + 4 * 8 + 8 * 16 + 16 * 32) + (2 + 4 + 8 + 16 + 32)
    norms = 2 * (2 + 4 + 8 + 16 + 32)
    assert parameters_of(arguments, classes=10, channels=1) == convolutions + norms + 32 * 5 + 5 + 5 * 10 + 10
    macs = 9 * (32**2 * 2 + 16**2 * 8 + 8**2 * 32 + 4**2 * 128 + 2**2 * 512) + 32 * 5 + 5 * 10
    assert macs_of(arguments, classes=10, channels=1) == macs
    assert arguments.widths == (2, 4, 8, 16, 32)


@pytest.mark.parametrize(
    ("kernel", "padding", "smallest"),
    # valid, 3: 1 <- 4 <- 10 <- 22 <- 46 <- 94, each twice as much and two more
    [(3, "same", 32), (1, "valid", 32), (3, "valid", 94), (3, 1, 32), (5, "valid", 156), (3, 2, 1)],
)
def test_smallest_inputs(kernel, padding, smallest):
    assert smallest_of(Cnn5Arguments(kernel=kernel, padding=padding, img_size=500)) == smallest


def test_widths():
    assert Cnn5Arguments(filters=12, growth="equal").widths == (12,) * 5
    assert Cnn5Arguments(filters=12, growth="halve").widths == (12, 6, 3, 1, 1)


def test_layers_stand_in_their_order():
    model = _built(Cnn5Arguments(activation="silu", dropout=0.25))
    assert [type(layer) for layer in model.features[0]] == [nn.Conv2d, nn.SiLU, nn.BatchNorm2d, nn.MaxPool2d]
    assert len(model.features) == 5
    assert [type(layer) for layer in model.dense] == [nn.Linear, nn.SiLU, nn.Dropout]
    assert model.dense[2].p == 0.25
    assert not any(isinstance(m, nn.BatchNorm2d) for m in _built(Cnn5Arguments(batch_norm=False)).modules())


def test_its_classifier_can_be_replaced():
    model = _built(Cnn5Arguments(dense=7))
    model.reset_classifier(4)
    assert (model.get_classifier().in_features, model.get_classifier().out_features) == (7, 4)
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": 0}, r"arguments\.filters: expected a whole number of at least 1, got 0"),
        ({"dense": 1.5}, r"arguments\.dense: expected a whole number of at least 1, got 1\.5"),
        ({"growth": "treble"}, "unknown growth 'treble'"),
        ({"activation": "rulu"}, "unknown activation 'rulu'; did you mean .*relu"),
        ({"kernel": [3, 3]}, r"arguments\.kernel: expected one number or 5, got 2"),
        ({"kernel": [3, 3, 3, 3, 0]}, r"arguments\.kernel: expected a whole number of at least 1, got 0"),
        ({"padding": "some"}, r"arguments\.padding: expected 'same', 'valid' or a whole number of at least 0"),
        ({"batch_norm": "yes"}, r"arguments\.batch_norm: expected true or false, got 'yes'"),
        ({"dropout": 1}, r"arguments\.dropout: expected a share in \[0, 1\), got 1"),
        ({"img_size": 31}, r"needs at least 32 pixels, got arguments\.img_size=31; raise it"),
        ({"filter": 3}, "unknown argument of cnn5 'filter'; did you mean filters"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UsageError, match=message):
        build("cnn5", classes=2, channels=3, arguments=arguments)


def test_input_is_what_it_was_made_for():
    assert input_for("cnn5", colour="L", size=None, photographs=False).size == (64, 64)
    found = input_for("cnn5", colour="RGB", size=None, photographs=True, arguments={"img_size": 96})
    assert (found.size, found.resize.edge) == ((96, 96), int(96 / 0.875))
