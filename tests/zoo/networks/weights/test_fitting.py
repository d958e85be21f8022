"""Tensors into a network: colours, shapes, labels."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import ArtefactError
from zoo.networks.registry import build
from zoo.networks.weights.first_weights import (
    absolute_weights,
    classifier_outputs,
    load_weights,
    weights_digest,
    weights_path,
)
from zoo.networks.weights.fitting import misfits

LABELS = ("cat", "dog", "hen")
SMALL = {"channels": [8, 8, 16, 16]}


def _resnet(classes: int = 3, channels: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("resnet10t", classes=classes, channels=channels, arguments=SMALL)


def _load(model: nn.Module, path: Path, content: Any, labels: Any = LABELS) -> nn.Module:
    torch.save(content, path)
    load_weights(model, "resnet10t", str(path), arguments=SMALL, labels=labels)
    return model


@pytest.mark.parametrize(
    ("extra", "kept"),
    [
        ({}, False),
        ({"labels": ["ape", "bee", "cow"]}, False),
        ({"labels": ["cat", "dog", "cow"]}, False),
        ({"labels": ["cat", "dog"]}, False),
        ({"labels": ["cat", "dog", "hen"]}, True),
        ({"class_to_idx": {"hen": 2, "dog": 1, "cat": 0}}, True),
    ],
)
def test_a_classifier_stays_only_for_the_same_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: dict[str, Any], kept: bool
) -> None:
    donor, path = _resnet(seed=1), tmp_path / "w.pt"
    model = _load(_resnet(), path, {"state_dict": donor.state_dict()} | extra)
    assert torch.equal(model.conv1[0].weight, donor.conv1[0].weight)
    assert torch.equal(model.fc.weight, donor.fc.weight if kept else torch.zeros(3, 16))
    meaning = "for ape, bee, cow, ..." if "ape" in str(extra) else "for "
    said = f"{path}: its classifier of 3 outputs, {meaning}"
    assert (said in capsys.readouterr().err) != kept


def test_labels_in_another_order_bring_their_rows_along(tmp_path: Path) -> None:
    donor = _resnet(seed=1)
    model = _load(_resnet(), tmp_path / "w.pt", {"model": donor.state_dict(), "classes": ["hen", "cat", "dog"]})
    assert torch.equal(model.fc.weight, donor.fc.weight[[1, 2, 0]])
    assert torch.equal(model.fc.bias, donor.fc.bias[[1, 2, 0]])


def test_a_classifier_of_another_form_is_replaced_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    donor, path = _resnet(seed=1), tmp_path / "w.pt"
    donor.fc = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))  # as tutorials of fine-tuning do
    model = _load(_resnet(), path, donor.state_dict())
    assert torch.equal(model.layer4[0].conv1.weight, donor.layer4[0].conv1.weight) and not model.fc.weight.any()
    assert "its classifier with fc.0.weight, for labels that it does not name, is replaced by a new one for your 3" in (
        capsys.readouterr().err
    )
    with pytest.raises(ArtefactError, match=r"do not fit ResNet: .*unknown, like \['fc\.0\.weight'"):
        _load(_resnet(), path, donor.state_dict(), None)


def test_a_thousand_labels_of_your_own_are_not_imagenets(capsys: pytest.CaptureFixture[str]) -> None:
    name, model = "tf_efficientnet_lite0", build("tf_efficientnet_lite0", classes=1000, channels=3)
    load_weights(model, name, "pretrained", labels=[f"part {number}" for number in range(1000)])
    assert not model.classifier.weight.any()
    assert "its classifier of 1000 outputs, for tench, goldfish, great white shark, ..., is replaced" in (
        capsys.readouterr().err
    )
    synsets = tuple(timm.data.ImageNetInfo("imagenet-1k").label_names())
    load_weights(model, name, "pretrained", labels=synsets)
    kept = model.classifier.weight.clone()
    assert kept.any() and not capsys.readouterr().err
    load_weights(model, name, "pretrained", labels=synsets[::-1])
    assert torch.equal(model.classifier.weight, kept.flip(0))


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (1, 3), (3, 5), (4, 3), (4, 1)])
def test_colours_are_adapted_as_timm_does(tmp_path: Path, theirs: int, ours: int) -> None:
    if theirs != 3 and "base_chans" not in inspect.signature(timm.models.adapt_input_conv).parameters:
        pytest.skip(f"timm {timm.__version__} adapts weights of three colours only")
    donor = _resnet(channels=theirs, seed=1)
    model = _load(_resnet(channels=ours), tmp_path / "w.pt", {"module": donor.state_dict()})
    expected = timm.models.adapt_input_conv(ours, donor.conv1[0].weight.detach(), theirs)
    torch.testing.assert_close(model.conv1[0].weight.detach(), expected)
    assert torch.equal(model.layer2[0].conv2.weight, donor.layer2[0].conv2.weight)


def test_colours_of_a_network_that_is_not_timms(tmp_path: Path) -> None:
    donor, model = (build("lenet", classes=3, channels=channels) for channels in (3, 1))
    torch.save(donor.state_dict(), tmp_path / "w.pt")
    load_weights(model, "lenet", str(tmp_path / "w.pt"), labels=LABELS)
    torch.testing.assert_close(model.features[0].weight, donor.features[0].weight.sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("names", "maker"),
    [
        (("vit.embeddings.patch_embeddings.projection.weight", "classifier.weight"), "Hugging Face's transformers"),
        (("embeddings.cls_token", "encoder.layer.0.attention.attention.query.weight"), "Hugging Face's transformers"),
        (("resnet.embedder.embedder.convolution.weight",), "Hugging Face's transformers"),
        (("convnextv2.encoder.stages.0.layers.0.dwconv.weight",), "Hugging Face's transformers"),
        (("conv_proj.weight", "class_token"), "torchvision's transformers"),
        (("Transformer/encoderblock_0/LayerNorm_0/kernel",), "Keras or Flax"),
    ],
)
def test_names_of_others_are_refused_by_name(tmp_path: Path, names: tuple[str, ...], maker: str) -> None:
    path = tmp_path / "w.pt"
    torch.save({name: torch.ones(2, 2) for name in names}, path)
    model = build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT)
    with pytest.raises(ArtefactError, match=f"these are the names of {maker}, which timm does not convert") as caught:
        load_weights(model, "vit_tiny_patch16_224", str(path), arguments=TINY_VIT, labels=LABELS)
    assert f"found {list(names)[:3]}, expected ['cls_token', 'pos_embed', 'patch_embed.proj.weight']" in str(
        caught.value
    )
    with pytest.raises(ArtefactError, match=f"no classifier 'head.weight' .* names of {maker}"):
        classifier_outputs(model, str(path))


def test_counters_of_steps_may_be_missing(tmp_path: Path) -> None:
    donor = _resnet(seed=1)
    old = {name: tensor for name, tensor in donor.state_dict().items() if "num_batches" not in name}
    assert len(old) < len(donor.state_dict())
    model = _load(_resnet(), tmp_path / "w.pt", old)
    assert torch.equal(model.bn1.running_var, donor.bn1.running_var) and torch.equal(model.bn1.weight, donor.bn1.weight)


def test_the_closest_shape_is_named() -> None:
    own = _resnet().state_dict()
    other = own | {"conv1.0.weight": torch.zeros(99, 3, 7, 7), "bn1.weight": torch.zeros(65)}
    assert "2 of other shapes (the closest: 'bn1.weight' is [65], expected [64])" in misfits(
        _resnet(), other, fresh_head=True
    )


def test_a_file_is_known_by_its_content_and_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.pt").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert (weights_digest("w.pt"), weights_digest("w.pt#ema")) == (digest, f"{digest}#ema")
    assert absolute_weights("w.pt#ema") == f"{tmp_path.resolve()}/w.pt#ema"
    assert weights_path("w.pt#ema") == Path("w.pt")
    for name in ("none", "pretrained", "gone.pt#ema"):
        assert (weights_digest(name), absolute_weights(name), weights_path(name)) == (name, name, None)
