"""Tests of compress.recalibrate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.recalibrate import batch_norms, recalibrate_model
from tests.zoo.factories import make_input, make_samples
from zoo.batches import Images, Normalise
from zoo.errors import ArtefactError
from zoo.norms import even_chunks


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
    images = Images(make_samples(32), spec)
    convolution, norm = net.body[1], net.body[2]
    weights = {name: tensor.clone() for name, tensor in net.named_parameters()}
    assert recalibrate_model(net, images, batch_size=16) == 1
    # Without dropout: the statistics of what the convolution really puts out.
    prepared = Normalise(spec, torch.device("cpu"))(torch.stack([images[index][0] for index in range(32)]))
    outputs = convolution(prepared)
    assert torch.allclose(norm.running_mean, outputs.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, outputs.var((0, 2, 3)), rtol=2e-2)
    assert norm.momentum == 0.1
    assert not net.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.named_parameters())


def test_order_of_batches_does_not_matter() -> None:
    torch.manual_seed(0)
    net, samples = Net(), make_samples(32)
    means = []
    for order in (samples, samples[::-1]):
        recalibrate_model(net, Images(order, make_input(8, "L")), batch_size=16)
        means.append(net.body[2].running_mean.clone())
    assert torch.allclose(*means, atol=1e-6)


def test_networks_without_batchnorm_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(64))
    assert batch_norms(model) == []
    with pytest.raises(ArtefactError, match="LayerNorm computes its statistics from each image"):
        recalibrate_model(model, Images(make_samples(2), make_input(8, "L")), batch_size=2)


@pytest.mark.parametrize("count", [17, 20, 33])
def test_every_image_has_about_the_same_weight(count: int) -> None:
    torch.manual_seed(0)
    net, samples, spec = Net(), make_samples(count), make_input(8, "L")
    recalibrate_model(net, Images(samples, spec), batch_size=16)
    prepared = Normalise(spec, torch.device("cpu"))(torch.stack([Images(samples, spec)[i][0] for i in range(count)]))
    assert torch.allclose(net.body[2].running_mean, net.body[1](prepared).mean((0, 2, 3)), atol=2e-2)


def test_batches_differ_in_size_by_at_most_one() -> None:
    for count, size in ((65, 64), (196, 64), (17, 16), (1, 4)):
        batches = even_chunks(range(count), size)
        assert [index for batch in batches for index in batch] == list(range(count))
        sizes = {len(batch) for batch in batches}
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1
