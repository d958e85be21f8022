"""Decoded images and batches of them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from tests.zoo.factories import encode, make_input, make_samples, photo_input, picture
from zoo.artefact.preprocess import normalise, pixels
from zoo.base.errors import DataError, UsageError
from zoo.data import decoded as module
from zoo.data.dataset import Sample
from zoo.data.decoded import DecodedImages, Normalise, canvas, epoch_order

SAMPLES = make_samples(5, size=9)
SPEC = make_input(6, "L")


def test_the_canvas_keeps_what_the_crop_cuts_off():
    assert canvas(photo_input(28, 32)).size == (32, 32)
    assert canvas(SPEC) == SPEC


def test_pictures_are_the_evaluations_pixels():
    images = DecodedImages(SAMPLES, SPEC)
    assert len(images) == 5 and images.labels.tolist() == [0, 1, 0, 1, 0]
    for index, sample in enumerate(SAMPLES):
        picture_, label = images[index]
        assert (picture_.dtype, label) == (torch.uint8, sample.label)
        assert np.array_equal(picture_.numpy(), np.moveaxis(pixels(sample.read(), SPEC), -1, 0))


def test_cached_and_uncached_give_the_same_batches():
    order = [[4, 0], [2], [3, 1]]
    cached, uncached = (list(DecodedImages(SAMPLES, SPEC, cache_bytes=size).batches(order)) for size in (10**6, 0))
    assert len(cached) == len(uncached) == 3
    for (ours, labels), (theirs, their_labels) in zip(cached, uncached, strict=True):
        assert torch.equal(ours, theirs) and torch.equal(labels, their_labels)
    assert cached[0][0].shape == (2, 1, 6, 6)


@pytest.fixture
def decoded(monkeypatch):
    """Names of the images that were decoded."""
    found: list[str] = []
    original = module._channels_first
    monkeypatch.setattr(
        module, "_channels_first", lambda sample, spec: found.append(sample.name) or original(sample, spec)
    )
    return found


@pytest.mark.parametrize("kept", [0, 2, 5, 99])
def test_what_fits_is_kept_and_the_rest_decoded_each_time(decoded, kept):
    images = DecodedImages(SAMPLES, SPEC, cache_bytes=kept * 36 + 35)
    wanted = torch.stack([torch.from_numpy(np.moveaxis(pixels(s.read(), SPEC), -1, 0).copy()) for s in SAMPLES])
    order = [[4, 0], [2, 2], [3, 1]]
    for epoch in range(3):
        decoded.clear()
        found = list(images.batches(order))
        assert torch.equal(torch.cat([part for part, _ in found]), wanted[[4, 0, 2, 2, 3, 1]])
        assert torch.cat([labels for _, labels in found]).tolist() == [0, 0, 0, 0, 1, 1]
        assert set(decoded) == {str(index) for index in range(5) if index >= kept or epoch == 0}


def test_nothing_is_decoded_before_it_is_asked_for(decoded):
    images = DecodedImages(SAMPLES, SPEC)
    assert decoded == []
    assert torch.equal(images[3][0], images[3][0]) and decoded == ["3"]


def test_keeping_ends_where_others_take_the_memory(monkeypatch, decoded):
    free = iter([10_000, 10_000, 2_000])
    monkeypatch.setattr(module, "available_memory", lambda: next(free, 2_000))
    monkeypatch.setattr(module, "_CHECK", 1)
    monkeypatch.setattr(module, "cores", lambda: 1)
    images = DecodedImages(SAMPLES, SPEC)
    for _ in range(2):
        list(images.in_order(1))
    assert decoded == ["0", "1", "2", "3", "4", "2", "3", "4"]


@pytest.mark.parametrize(("free", "kept"), [(0, 0), (96, 2), (10_000, 5)])
def test_three_quarters_of_what_is_free_are_taken(monkeypatch, decoded, free, kept):
    monkeypatch.setattr(module, "available_memory", lambda: free)
    images = DecodedImages(SAMPLES, SPEC)
    for _ in range(2):
        list(images.in_order(5))
    assert len(decoded) == 10 - kept


def test_pictures_are_decoded_ahead_but_not_all_at_once(monkeypatch):
    decoded = []

    def count(sample, spec):
        decoded.append(sample.name)
        return np.moveaxis(pixels(sample.read(), spec), -1, 0)

    monkeypatch.setattr("zoo.data.decoded._channels_first", count)
    images = DecodedImages(make_samples(40, size=9), SPEC, cache_bytes=0)
    batches = images.in_order(2)
    first, _ = next(batches)
    assert first.shape == (2, 1, 6, 6)
    assert len(decoded) <= 2 * 4
    batches.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert len(list(images.in_order(2))) == 20


def test_the_picture_that_fails_in_a_batch_is_named_and_ends_the_threads():
    broken = Sample(name="broken.png", label=0, digest="", source=b"no image")
    batches = DecodedImages([*SAMPLES, broken], SPEC, cache_bytes=0).in_order(2)
    assert len(next(batches)[0]) == 2
    with pytest.raises(DataError, match=r"broken\.png: cannot decode the image"):
        list(batches)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 99])
def test_in_order_gives_every_picture_once(batch_size):
    images = DecodedImages(SAMPLES, SPEC)
    parts = [part for part, _ in images.in_order(batch_size)]
    assert max(map(len, parts)) <= batch_size
    assert torch.equal(torch.cat(parts), torch.stack([images[index][0] for index in range(5)]))


@pytest.mark.parametrize("cache_bytes", [10**9, 0])
def test_a_picture_that_cannot_be_resized_is_named(cache_bytes):
    long = Sample(name="long.png", label=0, digest="", source=encode(np.zeros((1, 500_000), np.uint8)))
    with pytest.raises(DataError, match=r"long\.png: the image is too elongated: 500000 x 1 pixels"):
        DecodedImages([long], photo_input(224, 256), cache_bytes=cache_bytes)[0]


def test_normalisation_is_the_cards():
    spec = make_input(4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    array = picture(0, 4, 4)
    ours = Normalise(spec, torch.device("cpu"))(torch.from_numpy(np.moveaxis(array, -1, 0).copy())[None])
    np.testing.assert_allclose(ours[0].numpy(), normalise(array, spec), atol=1e-6)


LABELS = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)


def _order(sampler: str, seed: int = 0) -> list[int]:
    return epoch_order(LABELS, sampler=sampler, generator=torch.Generator().manual_seed(seed))


def test_shuffled_gives_every_picture_once():
    order = _order("shuffled")
    assert order == torch.randperm(100, generator=torch.Generator().manual_seed(0)).tolist()
    assert sorted(order) == list(range(100))


def test_balanced_draws_every_class_as_often():
    orders = [_order("balanced", seed) for seed in range(60)]
    assert {len(order) for order in orders} == {100}
    drawn = torch.tensor(orders).flatten()
    shares = torch.bincount(LABELS[drawn]) / len(drawn)
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    # Within a class, every image is as likely as any other.
    rare = torch.bincount(drawn, minlength=100)[95:]
    assert rare.float().std() < 0.12 * rare.float().mean()


@pytest.mark.parametrize("sampler", ["shuffled", "balanced"])
def test_an_order_can_be_drawn_again(sampler):
    assert _order(sampler) == _order(sampler) != _order(sampler, 1)
    assert all(isinstance(index, int) for index in _order(sampler))


def test_an_unknown_sampler_is_named():
    with pytest.raises(UsageError, match=r"unknown sampler 'balance'; did you mean balanced\?"):
        _order("balance")
