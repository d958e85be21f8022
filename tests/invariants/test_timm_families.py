"""One member of every family of timm's registry, from random weights to the answer of its exported file.

A family is a module of timm.models; its member here is the smallest that has a classifier. The normal run takes a few
families that work by a mechanism of their own, with fewer layers; POCKETZOO_SOAK=1 takes all as they are (an hour on
one core).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from compress.export import PARITY_TOLERANCE, export
from compress.prune.stage import prune_model
from tests.zoo.factories import encode, make_card, make_input, picture
from zoo.artefact.predictor import Predictor
from zoo.base.errors import PocketzooError
from zoo.networks import checkpoint
from zoo.networks.heads import reset_head
from zoo.networks.registry import build, classifier_width, count_macs
from zoo.networks.sizes import check_size, smallest_input
from zoo.training.recipe import PruneConfig

QUICK: dict[str, dict[str, Any]] = {
    "coat_tiny": {
        "img_size": 32,
        "serial_depths": [1, 1, 1, 1],
        "parallel_depth": 1,
        "embed_dims": [16, 16, 16, 16],
        "mlp_ratios": [1, 1, 1, 1],
    },
    "fastvit_t8": {"layers": [1, 1, 1, 1], "embed_dims": [16, 16, 16, 16]},
    "levit_128s": {"img_size": 64, "depth": [1, 1, 1], "embed_dim": [16, 16, 16], "num_heads": [1, 1, 1]},
    "mobilenetv3_small_050": {},
    "pit_ti_distilled_224": {"img_size": 64, "base_dims": [16, 16, 16], "depth": [1, 1, 1], "heads": [1, 1, 1]},
    "repvit_m0_9": {"embed_dim": [16, 16, 16, 16], "depth": [1, 1, 1, 1]},
    "test_nfnet": {},
    "test_vit_relpos": {"depth": 1},
    "twins_svt_small": {
        "depths": [1, 1, 1, 1],
        "embed_dims": [16, 16, 16, 16],
        "num_heads": [1, 1, 1, 1],
        "mlp_ratios": [1, 1, 1, 1],
    },
}
"""Member -> arguments: modules with several names, re-parametrised branches, two heads, an extra token, one module with
both heads, standardised convolutions, a learnt bias in the attention, attention over windows of windows."""

FAMILIES: dict[str, str] = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "lcnet_035",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_distilled_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m0_9",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_l3",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
"""Module -> its smallest member that has a classifier."""

REFUSED: dict[str, str] = {
    # onnxscript's optimizer leaves a Clip without the bound that it reads.
    "gemma4_vit": "the graph is not valid ONNX: Nodes in a graph must be topologically sorted",
}
"""Module -> what is said of it."""


@pytest.mark.parametrize("name", QUICK)
def test_families_of_a_kind_of_their_own(name: str, tmp_path: Path) -> None:
    through(name, QUICK[name], tmp_path)


@pytest.mark.skipif("POCKETZOO_SOAK" not in os.environ, reason="takes an hour: set POCKETZOO_SOAK=1")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("module", FAMILIES)
def test_every_family(module: str, tmp_path: Path) -> None:
    if FAMILIES[module] not in timm.list_models():
        pytest.skip(f"timm {timm.__version__} has no {FAMILIES[module]}")
    if module in REFUSED:
        with pytest.raises(PocketzooError, match=REFUSED[module]):
            through(FAMILIES[module], {}, tmp_path)
    else:
        through(FAMILIES[module], {}, tmp_path)


NOT_PRUNED: dict[str, str] = {
    # torch-pruning cannot tell how wide the parts of some concatenations and splits are.
    "coat": "cannot be run and followed on inputs of shape .* unsupported operand",
    "cspnet": "cannot be run and followed on inputs of shape .* unsupported operand",
    # The gains of standardised convolutions are no layer that it follows.
    "nfnet": r"out of reach \(\d+ layers stay whole, first stem.conv1: removing channels is not the same as",
    "shvit": "cannot be run and followed on inputs of shape .* division",
    "tnt": "cannot be run and followed on inputs of shape .* unsupported operand",
    "sequencer": r"because of stages.0.blocks.0.rnn_tokens.rnn_v \(LSTM\): how the channels of recurrent layers",
    "sknet": r"out of reach \(12 layers stay whole, first conv1: removing channels is not the same as masking them",
}
"""Module -> what is said where a fifth of the multiply-accumulates cannot go."""


@pytest.mark.skipif("POCKETZOO_SOAK" not in os.environ, reason="takes an hour: set POCKETZOO_SOAK=1")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("module", FAMILIES)
def test_every_family_is_pruned_or_names_the_layer(module: str) -> None:
    if FAMILIES[module] not in timm.list_models():
        pytest.skip(f"timm {timm.__version__} has no {FAMILIES[module]}")
    pruned_or_named(FAMILIES[module], NOT_PRUNED.get(module))


@pytest.mark.parametrize("name", ["fastvit_t8", "levit_128s"])
def test_families_of_a_kind_of_their_own_are_pruned(name: str) -> None:
    pruned_or_named(name, None, QUICK[name])


def pruned_or_named(name: str, refusal: str | None, arguments: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Prune a network to four fifths of its multiply-accumulates, or read why not."""
    torch.manual_seed(0)
    shape = make_input(smallest_input(name, arguments)).shape
    # Of a single pixel, what a layer mixes in space would not show.
    shape = (3, 64, 64) if min(shape[1:]) < 64 else shape
    model = build(name, classes=3, channels=3, arguments=arguments).eval()
    if refusal is not None:
        with pytest.raises(PocketzooError, match=refusal):
            prune_model(model, torch.zeros(1, *shape), PruneConfig(macs=0.8))
        return
    # Whether what is left computes what masking does is proved on the way.
    smaller, done = prune_model(model, torch.zeros(1, *shape), PruneConfig(macs=0.8, round_to=2))
    assert 0.5 < done.ratio <= 0.8 and done.macs_after == count_macs(smaller, shape)
    names = dict(model.named_modules())
    assert all(kept.layer.split(" (")[0] in names for kept in done.kept)


def test_no_family_is_missing() -> None:
    assert set(timm.list_modules()) <= set(FAMILIES)
    assert set(REFUSED) | set(NOT_PRUNED) <= set(FAMILIES) and len(FAMILIES) == 98


def through(name: str, arguments: dict[str, Any], folder: Path) -> None:
    """Build a network, train one step on its smallest input, save, load, export, and answer with the exported file."""
    torch.manual_seed(0)
    size = smallest_input(name, arguments)
    model = build(name, classes=3, channels=3, arguments=arguments).train()
    spec = make_input(size)
    check_size(model, name, spec)
    reset_head(model, 3)
    images, truth = torch.rand(4, *spec.shape), torch.arange(4) % 3
    loss = nn.functional.cross_entropy(model(images), truth)
    assert loss.item() == pytest.approx(np.log(3), rel=1e-5)  # a new classifier, with no part of the old one left
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    card = make_card(architecture=name, spec=spec, stages=("train",), arguments=arguments)
    card = dataclasses.replace(card, inform=dataclasses.replace(card.inform, macs=count_macs(model, spec)))
    checkpoint.save(model, card, folder / "model.safetensors")
    loaded, card = checkpoint.load(folder / "model.safetensors")
    assert classifier_width(loaded) == 3
    with torch.inference_mode():
        wanted = model.eval()(images)
        assert wanted.isfinite().all() and torch.equal(loaded(images), wanted)
    export(folder / "model.safetensors", folder / "model.onnx")
    predictor = Predictor(folder / "model.onnx", threads=1)
    scale = max(1.0, float(wanted.abs().max()))
    assert np.abs(predictor.logits(images.numpy()) - wanted.numpy()).max() <= PARITY_TOLERANCE * scale
    (answer,) = predictor.predict([encode(picture())])
    assert len(answer.labels) == 3 and sum(answer.probabilities) == pytest.approx(1, abs=1e-4)
