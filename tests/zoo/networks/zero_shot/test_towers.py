"""open_clip's image towers as timm's networks."""

from __future__ import annotations

import copy
from pathlib import Path

import open_clip
import pytest
import torch

from tests.zoo.networks.zero_shot.tiny import CONFIGS, VIT, make_clip, register
from zoo.artefact.card import Head
from zoo.base.errors import ArtefactError, UsageError
from zoo.networks.zero_shot.towers import _counterpart, agreement, check_tower, timm_tower, with_texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("clips")
    register(found)
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_answers_as_open_clips_does(folder, tmp_path, name):
    config = open_clip.get_model_config(name)
    model = make_clip(name, tmp_path / "w.pt")
    check_tower(name, config)
    tower = timm_tower(model.visual, name, config)
    hidden = 0 if name == "tiny-bias" else config["embed_dim"]
    assert tower.head == Head(kind="cosine", hidden=hidden, dropout=0.0)
    weight, bias = torch.randn(3, config["embed_dim"]), torch.randn(3)
    network = with_texts(tower, weight, bias)
    edge = config["vision_cfg"]["image_size"]
    images = torch.randn(2, 3, edge, edge)
    with torch.inference_mode():
        wanted = model.encode_image(images, normalize=True) @ weight.T + bias
        torch.testing.assert_close(network(images), wanted, rtol=0, atol=1e-5)
        assert (network(images)[0] - network(images)[1]).abs().max() > 1e-3
    assert agreement(network, model.visual, name, (edge, edge)) < 1e-6


def test_another_network_is_noticed(folder, tmp_path):
    config = open_clip.get_model_config("tiny-vit")
    model = make_clip("tiny-vit", tmp_path / "w.pt")
    quick = copy.deepcopy(config) | {"quick_gelu": True}
    network = with_texts(timm_tower(model.visual, "tiny-vit", quick), torch.eye(24), torch.zeros(24))
    with pytest.raises(
        ArtefactError, match=r"--clip tiny-vit: timm's network answers otherwise .* a cosine differs by"
    ):
        agreement(network, model.visual, "tiny-vit", (32, 32))
    with torch.no_grad():
        network.norm.weight.fill_(torch.nan)
    with pytest.raises(ArtefactError, match="differs by nan"):
        agreement(network, model.visual, "tiny-vit", (32, 32))


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("ViT-B-32", "vit_base_patch32_clip_224"),
        ("ViT-L-14-336-quickgelu", "vit_large_patch14_clip_quickgelu_336"),
        ("ViT-B-16-plus-240", "vit_base_patch16_plus_clip_240"),
        ("ViT-g-14", "vit_giant_patch14_clip_224"),
        ("RN50x4", "resnet50x4_clip"),
    ],
)
def test_timms_own_names(name, architecture):
    assert _counterpart(name, open_clip.get_model_config(name)) == (architecture, {})


def test_what_timm_has_no_name_for_is_built_from_arguments():
    architecture, arguments = _counterpart("ViT-S-32", open_clip.get_model_config("ViT-S-32"))
    assert architecture == "vit_base_patch16_clip_224"
    assert arguments == {
        "img_size": 224,
        "patch_size": 32,
        "embed_dim": 384,
        "depth": 12,
        "num_heads": 6,
        "mlp_ratio": 4.0,
    }


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        (VIT | {"ls_init_value": 1e-4}, "a VisionTransformer with ls_init_value=0.0001, which has no exact"),
        (VIT | {"pool_type": "avg", "no_ln_pre": True}, "with no_ln_pre=True, pool_type='avg'"),
        ({"layers": [1, 1, 1, 1], "width": 8}, r"a ModifiedResNet of \[1, 1, 1, 1\] blocks and the width 8"),
        ({"timm_model_name": "convnext_large", "timm_proj": "mlp"}, "convnext_large with an MLP as its projection"),
        ({"timm_model_name": "resnet50", "timm_pool": "abs_attn"}, "resnet50 with a pooling of open_clip's"),
        ({"timm_model_name": "resnet5000"}, "resnet5000, which this version of timm does not have"),
    ],
)
def test_towers_that_are_refused(vision, message):
    with pytest.raises(UsageError, match=f"--clip odd: its image tower is .*{message}"):
        check_tower("odd", {"embed_dim": 24, "vision_cfg": vision})
