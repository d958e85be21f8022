"""Inputs of training steps: whole images, and what frozen layers made of them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.zoo.factories import make_input, make_samples
from tests.zoo.training.loop.test_fit import Net
from zoo.data.augment.pipeline import Augment
from zoo.data.decoded import DecodedImages
from zoo.training.loop.distributed import World
from zoo.training.loop.feeds import CutFeed, TrainingImages, WholeFeed, cut_feed
from zoo.training.loop.methods.norms import even_chunks

SPEC = make_input(8, "L")
CPU = World(0, 1, torch.device("cpu"))
PICTURES = TrainingImages(
    train=DecodedImages(make_samples(9, 3), SPEC),
    validation=DecodedImages(make_samples(5, 3, seed=1), SPEC),
    spec=SPEC,
    augment=Augment(),
    classes=3,
    seed=0,
    world=CPU,
    memory_format=torch.contiguous_format,
)
HEAD = {"head.weight", "head.bias"}


def _net() -> Net:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)]
    return Net(*layers, features=4 * 36).eval()


def _cut(
    pictures: TrainingImages = PICTURES, *, trained: set[str] = HEAD, views: int = 0, epochs: int = 5
) -> CutFeed | str:
    return cut_feed(_net(), trained, set(), pictures, views=views, epochs=epochs)


def test_both_feeds_lead_to_the_same_logits():
    model = _net()
    cut = cut_feed(model, HEAD, set(), PICTURES, views=0, epochs=5)
    whole = WholeFeed(model, model, PICTURES)
    assert isinstance(cut, CutFeed)
    chunks = [[4, 0, 7], [1, 2]]
    for (kept, labels), (images, targets) in zip(cut.batches(0, chunks, 0), whole.batches(0, chunks, 0), strict=True):
        assert torch.equal(labels, targets)
        assert torch.allclose(cut.network(kept), model(images), atol=1e-6)
    assert np.allclose(cut.validation_logits(), whole.validation_logits(), atol=1e-6)
    assert len(list(cut.batches(0, chunks, 1))) == len(list(whole.batches(0, chunks, 1))) == 1


def test_views_take_turns():
    cut = _cut(replace(PICTURES, augment=Augment(rotate=40)), views=2)
    assert isinstance(cut, CutFeed)
    first, second, third = (next(cut.batches(epoch, [[0, 1]], 0))[0][0] for epoch in range(3))
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


def test_a_steps_inputs_depend_on_its_place_alone():
    pictures = replace(PICTURES, augment=Augment(rotate=40, mixup=0.4))
    feed, chunks = WholeFeed(_net(), _net(), pictures), [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    whole, rest = list(feed.batches(3, chunks, 0)), list(feed.batches(3, chunks, 2))
    assert torch.equal(whole[2][0], rest[0][0])
    assert torch.equal(whole[2][1], rest[0][1])
    assert not torch.equal(whole[2][0], next(iter(feed.batches(4, chunks, 2)))[0])


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"augment": Augment(mixup=0.2)}, {"views": 2}, "MixUp and CutMix blend"),
        ({"augment": Augment(flip=True)}, {}, r"train\.views = K keeps"),
        ({"augment": Augment(flip=True)}, {"views": 5}, r"5 epoch\(s\) would not use 5 view"),
        ({"world": World(0, 2, torch.device("cpu"))}, {}, "several processes"),
        ({}, {"trained": {"body.0.weight", *HEAD}}, "less than a tenth of the work"),
        ({}, {"epochs": 1}, r"1 epoch\(s\)"),
    ],
)
def test_why_nothing_is_kept(changes, options, reason):
    found = _cut(replace(PICTURES, **changes), **options)
    assert isinstance(found, str)
    assert re.search(reason, found), found


def test_what_does_not_fit_is_not_kept(monkeypatch):
    monkeypatch.setattr("zoo.training.loop.feeds._MOST_BYTES", 100)
    assert "GiB" in str(_cut())


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_processes_share_a_batch(mixup):
    pictures = replace(PICTURES, augment=Augment(rotate=40, noise=3.0, mixup=mixup))
    chunks = [[0, 1, 2, 3, 4], [5, 6, 7]]
    alone = list(WholeFeed(_net(), _net(), pictures).batches(0, chunks, 0))
    parts = [
        list(WholeFeed(_net(), _net(), replace(pictures, world=World(rank, 2, CPU.device))).batches(0, chunks, 0))
        for rank in range(2)
    ]
    for step in range(2):
        for column in range(2):
            assert torch.equal(torch.cat([part[step][column] for part in parts]), alone[step][column])


def test_even_chunks():
    assert even_chunks(range(5), 2) == [[0], [1, 2], [3, 4]]
