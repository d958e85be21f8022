"""Checkpoints: exact round trips, pruned shapes, refusals, atomic writes."""

from __future__ import annotations

import dataclasses
import os
import signal
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.zoo.factories import LABELS, TINY_VIT, make_card, make_input
from zoo.artefact.card import KEY, Card, Lora, to_json
from zoo.base.errors import ArtefactError, CardError
from zoo.networks import checkpoint
from zoo.networks.lora import add_lora
from zoo.networks.registry import build
from zoo.networks.shrink import drop_blocks, dropped_blocks

ARCHITECTURES: dict[str, tuple[dict[str, Any], int]] = {
    "lenet": ({}, 28),
    "resnet10t": ({}, 32),
    "vit_tiny_patch16_224": (TINY_VIT, 32),
    "tf_efficientnet_lite0": ({}, 32),
}


def _made(architecture: str) -> tuple[nn.Module, Card, torch.Tensor]:
    arguments, size = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    model = build(architecture, classes=3, channels=3, arguments=arguments).eval()
    card = make_card(architecture=architecture, spec=make_input(size), arguments=arguments, stages=("train",))
    return model, card, torch.rand(2, 3, size, size)


def _keep(module: nn.Module, name: str, indices: slice) -> None:
    setattr(module, name, nn.Parameter(getattr(module, name).detach()[indices].clone()))


@torch.inference_mode()
def _logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(images)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_round_trip(tmp_path, architecture):
    model, card, images = _made(architecture)
    path = tmp_path / "new" / "model.safetensors"
    written = checkpoint.save(model, card, path)
    loaded, found = checkpoint.load(path)
    assert found == written == checkpoint.read_card(path)
    assert found.lineage == card.lineage
    assert found.inform.parameters == sum(p.numel() for p in model.parameters())
    assert found.inform.bytes == sum(t.numel() * t.element_size() for t in load_file(path).values())
    assert not loaded.training
    assert torch.equal(_logits(loaded, images), _logits(model, images))
    assert list(path.parent.iterdir()) == [path]


def test_pruned_lenet_is_rebuilt_from_its_shapes(tmp_path):
    model, card, images = _made("lenet")
    first, second = model.features[0], model.features[3]
    _keep(first, "weight", slice(10))
    _keep(first, "bias", slice(10))
    second.weight = nn.Parameter(second.weight.detach()[:, :10].clone())
    expected = _logits(model, images)
    checkpoint.save(model, card, tmp_path / "m")
    loaded, _ = checkpoint.load(tmp_path / "m")
    assert (loaded.features[0].out_channels, loaded.features[3].in_channels) == (10, 10)
    assert torch.equal(_logits(loaded, images), expected)


def test_pruned_attention_heads_and_mlp_are_rebuilt(tmp_path):
    model, card, images = _made("vit_tiny_patch16_224")
    block = model.blocks[0]
    assert checkpoint.heads_of(model) == {"blocks.0.attn": 3, "blocks.1.attn": 3}
    rows = torch.cat([torch.arange(start, start + 32) for start in (0, 48, 96)])  # heads 0 and 1 of q, k and v
    with torch.no_grad():
        # Zeroing what head 2 contributes gives the answer that the smaller layer must reproduce.
        block.attn.proj.weight[:, 32:] = 0
        block.mlp.fc2.weight[:, 150:] = 0
    expected = _logits(model, images)
    _keep(block.attn.qkv, "weight", rows)
    _keep(block.attn.qkv, "bias", rows)
    _keep(block.mlp.fc1, "weight", slice(150))
    _keep(block.mlp.fc1, "bias", slice(150))
    block.attn.proj.weight = nn.Parameter(block.attn.proj.weight.detach()[:, :32].clone())
    block.mlp.fc2.weight = nn.Parameter(block.mlp.fc2.weight.detach()[:, :150].clone())
    card = dataclasses.replace(card, build=dataclasses.replace(card.build, heads={"blocks.0.attn": 2}))
    checkpoint.save(model, card, tmp_path / "m")
    loaded, _ = checkpoint.load(tmp_path / "m")
    assert checkpoint.heads_of(loaded) == {"blocks.0.attn": 2, "blocks.1.attn": 3}
    assert loaded.blocks[0].attn.qkv.out_features == 96
    torch.testing.assert_close(_logits(loaded, images), expected, atol=1e-5, rtol=0)


def test_separate_adapters_round_trip(tmp_path):
    model, card, images = _made("vit_tiny_patch16_224")
    add_lora(model, targets=["qkv"], rank=2, alpha=4.0)
    nn.init.normal_(model.blocks[0].attn.qkv.lora_b)
    lora = Lora(targets=("qkv",), rank=2, alpha=4.0)
    checkpoint.save(model, dataclasses.replace(card, build=dataclasses.replace(card.build, lora=lora)), tmp_path / "m")
    loaded, found = checkpoint.load(tmp_path / "m")
    assert found.build.lora == lora
    assert torch.equal(_logits(loaded, images), _logits(model, images))


def test_tensors_that_share_memory_are_saved(tmp_path):
    model, card, images = _made("lenet")
    memory = torch.rand(32)
    model.features[0].bias = nn.Parameter(memory[:16])
    model.features[3].bias = nn.Parameter(memory)
    checkpoint.save(model, card, tmp_path / "m")
    assert torch.equal(_logits(checkpoint.load(tmp_path / "m")[0], images), _logits(model, images))


def test_labels_must_match_the_classifier(tmp_path):
    model, card, _ = _made("lenet")
    path = tmp_path / "model.safetensors"
    wrong = dataclasses.replace(card, use=dataclasses.replace(card.use, labels=LABELS[:2]))
    with pytest.raises(ArtefactError, match=r"model\.safetensors: 2 labels for a classifier of 3 outputs"):
        checkpoint.save(model, wrong, path)
    assert not path.exists()
    save_file(model.state_dict(), path, metadata={KEY: to_json(wrong)})
    with pytest.raises(ArtefactError, match=r"model\.safetensors: the card has 2 labels, the classifier 3 outputs"):
        checkpoint.load(path)


@pytest.mark.parametrize("change", ["missing", "surplus"])
def test_tensors_are_loaded_strictly(tmp_path, change):
    model, card, _ = _made("lenet")
    tensors = dict(model.state_dict())
    if change == "missing":
        del tensors["head.bias"]
    else:
        tensors["extra"] = torch.zeros(1)
    save_file(tensors, tmp_path / "m", metadata={KEY: to_json(card)})
    with pytest.raises(ArtefactError, match=r"(?s)m: its tensors do not fit lenet: .*(head\.bias|extra)"):
        checkpoint.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"blocks.9.attn": 2}, r"names 'blocks\.9\.attn' as an attention layer, the network has \['blocks\.0\.attn'"),
        ({"blocks.0.attn": 5}, "an attention layer with 144 qkv features cannot have 5 heads"),
    ],
)
def test_wrong_heads(tmp_path, heads, message):
    model, card, _ = _made("vit_tiny_patch16_224")
    card = dataclasses.replace(card, build=dataclasses.replace(card.build, heads=heads))
    checkpoint.save(model, card, tmp_path / "m")
    with pytest.raises(ArtefactError, match=message):
        checkpoint.load(tmp_path / "m")


def test_dropped_blocks_come_back_as_shortcuts(tmp_path):
    model, card, images = _made("vit_tiny_patch16_224")
    drop_blocks(model, ["blocks.0"])
    card = dataclasses.replace(card, build=dataclasses.replace(card.build, dropped=("blocks.0",)))
    checkpoint.save(model, card, tmp_path / "m")
    loaded, found = checkpoint.load(tmp_path / "m")
    assert found.build.dropped == dropped_blocks(loaded) == ("blocks.0",)
    assert torch.equal(_logits(loaded, images), _logits(model, images))


@pytest.mark.parametrize("name", ["blocks.9", "blocks.0.nothing", "forward", ""])
def test_wrong_dropped_blocks(tmp_path, name):
    model, card, _ = _made("vit_tiny_patch16_224")
    card = dataclasses.replace(card, build=dataclasses.replace(card.build, dropped=(name,)))
    checkpoint.save(model, card, tmp_path / "m")
    with pytest.raises(ArtefactError, match=rf"m: the block '{name}', which was dropped, is not in VisionTransformer"):
        checkpoint.load(tmp_path / "m")


def test_a_card_cannot_make_us_read_other_files(tmp_path):
    model, card, _ = _made("resnet10t")
    arguments = {"checkpoint_path": "/tmp/pickled.pth"}
    card = dataclasses.replace(card, build=dataclasses.replace(card.build, arguments=arguments))
    checkpoint.save(model, card, tmp_path / "m")
    with pytest.raises(ArtefactError, match="m: 'checkpoint_path' is no argument of an architecture"):
        checkpoint.load(tmp_path / "m")


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ArtefactError, match=r"no checkpoint at .*model\.safetensors; `pocketzoo train` writes one"):
        checkpoint.load(path)
    for content in (b"", b"junk", b"\x80\x02}q\x00."):
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match=r"model\.safetensors: not a safetensors file .*--weights FILE"):
            checkpoint.read_card(path)


def test_a_truncated_checkpoint(tmp_path):
    model, card, _ = _made("lenet")
    path = tmp_path / "model.safetensors"
    checkpoint.save(model, card, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match="not a safetensors file"):
        checkpoint.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_header_without_a_card(tmp_path, metadata):
    save_file({"x": torch.zeros(1)}, tmp_path / "m", metadata=metadata)
    with pytest.raises(CardError, match=r"m: no `zoo\.card` in its metadata"):
        checkpoint.read_card(tmp_path / "m")


def test_a_killed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    model, card, _ = _made("lenet")
    path = tmp_path / "model.safetensors"
    checkpoint.save(model, card, path)
    before = path.read_bytes()

    def die(_, temporary, metadata):
        temporary.write_bytes(before[:100])
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(checkpoint, "save_file", die)
    child = os.fork()
    if child == 0:
        checkpoint.save(model, card, path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert path.read_bytes() == before
