"""Tests of compress.recalibrate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compress.recalibrate import batch_norms, recalibrate, recalibrate_model
from tests.zoo.factories import make_card, make_dataset, make_input, make_samples
from zoo.base.errors import ArtefactError, UsageError
from zoo.data.decoded import DecodedImages, Normalise
from zoo.networks import checkpoint
from zoo.networks.registry import build
from zoo.training.evaluate import torch_logits
from zoo.training.loop.methods.norms import even_chunks
from zoo.training.recipe import RecalibrateConfig


class Net(nn.Module):
    """Dropout, a frozen-looking convolution and one BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).mean((2, 3))


def test_statistics_are_those_of_the_images() -> None:
    torch.manual_seed(0)
    net, spec = Net(), make_input(8, "L")
    images = DecodedImages(make_samples(32), spec)
    convolution, norm = net.body[1], net.body[2]
    weights = {name: tensor.clone() for name, tensor in net.named_parameters()}
    assert recalibrate_model(net, images, batch_size=16) == 1
    # Without dropout: the statistics of what the convolution really puts out.
    prepared = Normalise(spec, torch.device("cpu"))(torch.stack([images[index][0] for index in range(32)]))
    outputs = convolution(prepared)
    assert torch.allclose(norm.running_mean, outputs.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, outputs.var((0, 2, 3), correction=0), rtol=1e-5)
    assert norm.momentum == 0.1
    assert not net.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.named_parameters())


def test_order_of_batches_does_not_matter() -> None:
    torch.manual_seed(0)
    net, samples = Net(), make_samples(32)
    means = []
    for order in (samples, samples[::-1]):
        recalibrate_model(net, DecodedImages(order, make_input(8, "L")), batch_size=16)
        means.append(net.body[2].running_mean.clone())
    assert torch.allclose(*means, atol=1e-6)


def test_a_second_layer_sees_the_first_one_normalise_with_batch_statistics() -> None:
    """Wu & Johnson 2021: the running statistics of one layer are those behind batch statistics of the layers before."""
    torch.manual_seed(0)
    first, second = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    net, spec = nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Dropout(0.9)), make_input(8, "L")
    images = DecodedImages(make_samples(6), spec)
    recalibrate_model(net, images, batch_size=3)
    batches = Normalise(spec, torch.device("cpu"))(torch.stack([images[index][0] for index in range(6)])).split(3)
    seen = torch.cat(
        [((part - part.mean()) / (part.var(correction=0) + first.eps).sqrt()).relu().flatten() for part in batches]
    )
    assert second.running_mean.item() == pytest.approx(seen.mean().item(), rel=1e-5)
    assert second.running_var.item() == pytest.approx(seen.var(correction=0).item(), rel=1e-5)


@pytest.mark.parametrize(("count", "size"), [(1, 8), (8, 1)])
def test_a_batch_of_one_image_is_refused(count: int, size: int) -> None:
    with pytest.raises(UsageError, match="batches of at least 2 images"):
        recalibrate_model(Net(), DecodedImages(make_samples(count), make_input(8, "L")), batch_size=size)


def test_the_stage_tells_accuracy_before_and_after(tmp_path: Path) -> None:
    source, target, dataset = tmp_path / "a.safetensors", tmp_path / "b.safetensors", make_dataset(per_split=24)
    torch.manual_seed(0)
    model = build("resnet10t", classes=3, channels=1)
    nn.init.normal_(model.fc.weight, std=0.1)
    spec = make_input(32, "L")
    for norm in batch_norms(model):
        norm.running_var.fill_(1e-4)
    checkpoint.save(model, make_card(architecture="resnet10t", spec=spec, stages=("train", "prune")), source)
    done = recalibrate(source, target, RecalibrateConfig(images=20, batch_size=8), dataset=dataset)
    healed, card = checkpoint.load(target)
    entry, metrics = card.lineage[-1], card.metrics("validation")
    assert metrics is not None
    assert (done.layers, done.images) == (len(batch_norms(healed)), 20)
    validation = DecodedImages(dataset.splits["validation"], spec)
    for network, told in ((model, done.top1_before), (healed, done.top1_after)):
        answers = torch_logits(network, validation).argmax(axis=1)
        assert told == pytest.approx((answers == validation.labels.numpy()).mean())
    assert (entry.stage, entry.summary["top1_before"], metrics.top1) == (
        "recalibrate",
        done.top1_before,
        pytest.approx(done.top1_after),
    )


def test_networks_without_batchnorm_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(64))
    assert batch_norms(model) == []
    with pytest.raises(ArtefactError, match="LayerNorm computes its statistics from each image"):
        recalibrate_model(model, DecodedImages(make_samples(2), make_input(8, "L")), batch_size=2)


@pytest.mark.parametrize("count", [17, 20, 33])
def test_every_image_has_the_same_weight(count: int) -> None:
    torch.manual_seed(0)
    net, samples, spec = Net(), make_samples(count), make_input(8, "L")
    recalibrate_model(net, DecodedImages(samples, spec), batch_size=16)
    prepared = Normalise(spec, torch.device("cpu"))(
        torch.stack([DecodedImages(samples, spec)[i][0] for i in range(count)])
    )
    outputs = net.body[1](prepared)
    assert torch.allclose(net.body[2].running_mean, outputs.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(net.body[2].running_var, outputs.var((0, 2, 3), correction=0), rtol=1e-5)


def test_batches_differ_in_size_by_at_most_one() -> None:
    for count, size in ((65, 64), (196, 64), (17, 16), (1, 4)):
        batches = even_chunks(range(count), size)
        assert [index for batch in batches for index in batch] == list(range(count))
        sizes = {len(batch) for batch in batches}
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1
