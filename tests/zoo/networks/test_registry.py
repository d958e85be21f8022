"""Networks by name, their input and their cost."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.zoo.factories import TINY_VIT, make_input
from zoo.artefact.card import Resize
from zoo.base.errors import UsageError
from zoo.networks.own.table import register
from zoo.networks.registry import (
    build,
    classifier,
    classifier_names,
    classifier_width,
    count_macs,
    input_channels,
    input_for,
    names,
    normalised,
    search,
    zero_classifier,
)


def test_names_are_ours_and_timms():
    known = names()
    assert {"lenet", "resnet18", "vit_tiny_patch16_224", "tf_efficientnet_lite0"} <= set(known)
    assert known == sorted(known) and len(known) > 1000


@pytest.mark.parametrize(
    ("name", "close"), [("lenett", "lenet"), ("resnet-18", "resnet18"), ("hf-hub:someone/x", "known; none is close")]
)
def test_unknown_names_list_close_ones(name, close):
    with pytest.raises(UsageError, match=rf"unknown model '{name}'; .*{close}"):
        build(name, classes=2, channels=3)


def test_builds_any_number_of_classes_and_channels():
    for name, size, arguments in (("lenet", 28, {}), ("resnet10t", 32, {}), ("vit_tiny_patch16_224", 32, TINY_VIT)):
        model = build(name, classes=4, channels=1, arguments=arguments).eval()
        assert model(torch.zeros(2, 1, size, size)).shape == (2, 4)


def test_lists_become_the_tuples_that_timm_wants():
    model = build("vit_tiny_patch16_224", classes=2, channels=3, arguments={**TINY_VIT, "img_size": [32, 16]})
    assert model.patch_embed.grid_size == (4, 2)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("lenet", {"depth": 2}, r"cannot build lenet with the arguments \{'depth': 2\}: .*depth"),
        ("resnet10t", {"colour": 2}, r"cannot build resnet10t with the arguments"),
        ("vit_tiny_patch16_224", {"patch_size": 0}, "cannot build .*: integer division"),
        ("vit_tiny_patch16_224", {"num_heads": 0}, "cannot build .*: integer modulo by zero"),
        ("vit_tiny_patch16_224", {"norm_layer": 3}, "cannot build .*: AssertionError"),
        ("resnet10t", {"block": "x"}, "cannot build .*: 'str' object has no attribute 'expansion'"),
        ("resnet10t", {"channels": []}, "cannot build .*: tuple index out of range"),
        ("resnet10t", {"checkpoint_path": "x.pth"}, r"'checkpoint_path' is no argument of an architecture"),
        ("resnet10t", {"pretrained": True}, r"'pretrained' is no argument of an architecture"),
    ],
)
def test_wrong_arguments(name, arguments, message):
    with pytest.raises(UsageError, match=message):
        build(name, classes=2, channels=3, arguments=arguments)


@pytest.mark.parametrize("name", ["lenet", "resnet18"])
def test_taken_names_are_refused(name):
    names()
    with pytest.raises(ValueError, match=f"the model name '{name}' is taken"):
        register(name)(lambda **_: nn.Identity())


def test_classifier_is_the_last_linear_layer():
    assert classifier(build("resnet10t", classes=7, channels=3)).out_features == 7
    with pytest.raises(UsageError, match="Linear has no classifier module"):
        classifier(nn.Linear(1, 1))


def test_input_of_a_pretrained_network():
    found = input_for("tf_efficientnet_lite0", colour="RGB", size=None, photographs=True)
    # timm/models/efficientnet.py: crop_pct 0.875, bicubic, mean and std 0.5 ("tf_" weights)
    assert found.size == (224, 224) and found.crop == "centre"
    assert found.resize == Resize(rule="shorter", edge=256, filter="bicubic")
    assert found.mean == found.std == (0.5, 0.5, 0.5)
    vit = input_for("resnet18", colour="RGB", size=64, photographs=True)
    assert (vit.size, vit.resize.edge) == ((64, 64), int(64 / 0.95))
    assert vit.mean == (0.485, 0.456, 0.406)


def test_input_of_small_pictures_keeps_all_of_them():
    found = input_for("lenet", colour="L", size=None, photographs=False)
    assert (found.size, found.resize, found.crop) == ((28, 28), Resize(rule="stretch"), "none")
    assert (found.mean, found.std) == ((0.5,), (0.5,))


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        # ImageNet's 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225
        ("resnet18", 1.347 / 3, 0.678 / 3),
        # OpenAI CLIP's 0.48145466, 0.4578275, 0.40821073 and 0.26862954, 0.26130258, 0.27577711
        ("vit_base_patch32_clip_224", 1.34749289 / 3, 0.80570923 / 3),
        ("tf_efficientnet_lite0", 0.5, 0.5),
        ("lenet", 0.5, 0.5),
    ],
)
def test_grey_images_are_normalised_as_the_colours_of_the_pretraining_were_on_average(name, mean, std):
    found = input_for(name, colour="L", size=None, photographs=True, pretrained=True)
    assert found.mean == (pytest.approx(mean),) and found.std == (pytest.approx(std),)
    random = input_for(name, colour="L", size=None, photographs=True)
    assert (random.mean, random.std) == ((0.5,), (0.5,))
    assert input_for(name, colour="RGB", size=None, photographs=True, pretrained=True).mean[0] >= 0.48


def test_normalisation_for_other_colours():
    grey, colours = make_input(8, "L"), make_input(8)
    assert (normalised(grey, (0.1, 0.2, 0.6), (1, 2, 3)).mean, normalised(grey, (0.4,), (2,)).std) == (
        (pytest.approx(0.3),),
        (2,),
    )
    assert normalised(colours, (0.4,), (2,)).mean == (0.4,) * 3
    assert normalised(colours, (0.1, 0.2, 0.6), (1, 2, 3)).std == (1, 2, 3)


def test_macs_of_lenet():
    # 28 x 28 x 16 x 25, 14 x 14 x 32 x 16 x 25, 1568 x 10
    model = build("lenet", classes=10, channels=1).train()
    assert count_macs(model, make_input(28, "L")) == 313_600 + 2_508_800 + 15_680
    assert model.training


def test_macs_of_a_vision_transformer_include_attention():
    model = build("vit_tiny_patch16_224", classes=10, channels=3, arguments=TINY_VIT)
    tokens, width = 17, 48
    patches = 16 * width * 3 * 8 * 8
    # q, k, v; scores and their sum over values; output; two layers of the MLP
    block = (
        tokens * width * 3 * width
        + 2 * tokens * tokens * width
        + tokens * width * width
        + 2 * tokens * width * 4 * width
    )
    assert count_macs(model, make_input(32)) == patches + 2 * block + width * 10


def test_both_heads_of_a_distilled_network_are_its_classifier():
    model = build("deit_tiny_distilled_patch16_224", classes=4, channels=3, arguments=TINY_VIT).eval()
    assert classifier_names(model) == ["head", "head_dist"]
    assert list(classifier(model)) == [model.head, model.head_dist]
    assert classifier_width(model) == 4
    zero_classifier(model)
    assert not any(parameter.any() for parameter in classifier(model).parameters())
    assert torch.equal(model(torch.rand(2, 3, 32, 32)), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("name", "heads"), [("volo_d1_224", ["head", "aux_head"]), ("repvit_m0_9", ["head.head", "head.head_dist"])]
)
def test_heads_that_timm_does_not_tell_apart(name, heads):
    model = build(name, classes=4, channels=3).eval()
    assert classifier_names(model) == heads
    zero_classifier(model)
    with torch.inference_mode():
        assert torch.equal(model(torch.rand(1, 3, 224, 224)), torch.zeros(1, 4))


@pytest.mark.parametrize("name", ["deepseek_vit_412m_enc", "resnet10t"])
def test_a_network_without_a_classifier_is_refused_by_name(name, monkeypatch):
    class Encoder(nn.Module):
        def get_classifier(self):
            return None if name == "deepseek_vit_412m_enc" else nn.Linear(3, 5)  # not a part of it

    monkeypatch.setattr("timm.create_model", lambda *_, **__: Encoder())
    with pytest.raises(UsageError, match=f"{name} has no classifier that a set of 5 labels could be given to"):
        build(name, classes=5, channels=3)


def test_a_network_whose_classifier_has_another_size_is_refused():
    # timm keeps a network of features only when it is asked for none.
    with pytest.raises(UsageError, match="resnet10t has no classifier that a set of 0 labels could be given to"):
        build("resnet10t", classes=0, channels=3)


def test_number_of_colours():
    assert input_channels(build("resnet10t", classes=2, channels=1)) == 1
    with pytest.raises(UsageError, match="Linear has no convolution, so its number of colours cannot be read"):
        input_channels(nn.Linear(1, 1))


def test_search():
    assert search("lenet")[:3] == ["googlenet", "lenet", "mobilenet_edgetpu_100"]
    assert search("cnn*") == ["cnn5"]
    assert search("vit_tiny_patch16_?8?") == ["vit_tiny_patch16_384"]
    assert search()[:4] == ["alexnet", "cnn5", "googlenet", "lenet"]
    assert set(search()) == set(names())
    pretrained = search(pretrained=True)
    assert "cnn5" not in pretrained and {"alexnet", "googlenet", "resnet10t"} <= set(pretrained)
    assert not any("." in name for name in pretrained)
    with pytest.raises(UsageError, match=r"unknown model 'resnet19'; did you mean .*resnet18"):
        search("resnet19")


def test_the_argument_img_size_is_the_input():
    found = input_for("vit_tiny_patch16_224", colour="RGB", size=None, photographs=False, arguments={"img_size": 96})
    assert found.size == (96, 96)
    both = input_for("vit_tiny_patch16_224", colour="RGB", size=64, photographs=False, arguments={"img_size": 96})
    assert both.size == (64, 64)
    for edges in ([32, 48], (48, 32)):
        pair = input_for("vit_tiny_patch16_224", colour="L", size=None, photographs=True, arguments={"img_size": edges})
        assert pair.shape == (1, *edges)


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(["tf_efficientnet_lite0", "resnet18", "lenet"]))
def test_input_that_is_not_square(height, width, name):
    found, square = (
        input_for(name, colour="RGB", size=size, photographs=True) for size in ((height, width), min(height, width))
    )
    # A square is what it was, however it is written; timm rounds each edge of a rectangle down.
    assert found.resize.rule == ("shorter" if height == width else "cover")
    assert found.resize.edge == square.resize.edge and found.mean == square.mean
    share = timm.get_pretrained_cfg(name).crop_pct if name != "lenet" else 0.875
    wanted = [int(edge / share) for edge in (height, width)]
    longer = max(height, width) / min(height, width)
    assert all(abs(a - b) <= longer + 1 for a, b in zip(wanted, found.canvas, strict=True))
    stretched = input_for(name, colour="RGB", size=(height, width), photographs=False)
    assert (stretched.size, stretched.resize.rule, stretched.canvas) == ((height, width), "stretch", (height, width))
