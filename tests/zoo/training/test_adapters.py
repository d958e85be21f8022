"""Adapter files: small, tied to their base, and as good as the network they came from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import run_cli
from tests.zoo.factories import LABELS, TINY_VIT, make_card
from zoo.artefact.card import KEY, Card, Lora, to_json
from zoo.base.errors import ArtefactError, CardError
from zoo.base.files import sha256_file
from zoo.networks.checkpoint import load, read_card, save
from zoo.networks.lora import LoraLinear, add_lora, merge_lora
from zoo.networks.registry import build
from zoo.training.adapters import apply_adapter, backbone_digest, extract_adapter, read_adapter, write_adapter
from zoo.training.stage import merge

ARCHITECTURE = "vit_tiny_patch16_224"


def _card(lora: Lora | None = None, labels: tuple[str, ...] = LABELS, **arguments: object) -> Card:
    card = make_card(labels, architecture=ARCHITECTURE, stages=("train",), arguments=TINY_VIT | arguments)
    return dataclasses.replace(card, build=dataclasses.replace(card.build, lora=lora))


def _base(path: Path, labels: tuple[str, ...] = LABELS, seed: int = 0, **arguments: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = build(ARCHITECTURE, classes=len(labels), channels=3, arguments=TINY_VIT | arguments)
    save(model, _card(labels=labels, **arguments), path)
    return model


def _adapted(base: Path, folder: Path, targets: tuple[str, ...] = ("q", "v", "fc1"), rank: int = 4) -> Path:
    """What training with LoRA leaves: lora.safetensors, and model.safetensors merged from it."""
    model, _ = load(base)
    lora = Lora(targets=targets, rank=rank, alpha=8.0, rslora=True)
    model.reset_classifier(len(LABELS))
    add_lora(model, targets=targets, rank=rank, alpha=8.0, rslora=True)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.normal_(module.lora_b)
    save(model, _card(lora), folder / "lora.safetensors")
    return merge(folder / "lora.safetensors", folder / "model.safetensors")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base" / "model.safetensors"
    _base(path)
    return path


@pytest.mark.parametrize("targets", [("qkv",), ("q", "v"), ("qkv", "proj", "fc1", "fc2"), ("blocks.1.*",)])
def test_base_and_adapter_make_the_same_files_again(base, tmp_path, targets):
    merged = _adapted(base, tmp_path / "ours", targets)
    adapter = extract_adapter(tmp_path / "ours")
    assert adapter == tmp_path / "ours" / "adapter.safetensors"
    again = apply_adapter(base.parent, adapter, tmp_path / "again")
    assert again == tmp_path / "again" / "model.safetensors"
    theirs, ours = (load(path)[0].state_dict() for path in (merged, again))
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs) and list(theirs) == list(ours)
    assert sha256_file(tmp_path / "again" / "lora.safetensors") == sha256_file(tmp_path / "ours" / "lora.safetensors")
    card = read_card(again)
    assert [entry.stage for entry in card.lineage] == ["train", "merge"] and card.build.lora is None
    assert card.lineage[1].parent == sha256_file(tmp_path / "ours" / "lora.safetensors")


def test_the_file_holds_adapters_classifier_and_card_only(base, tmp_path):
    _adapted(base, tmp_path, targets=("qkv", "proj", "fc1", "fc2"), rank=8)
    adapter = extract_adapter(tmp_path, tmp_path / "small.safetensors")
    said, card, tensors = read_adapter(adapter)
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    names = {f"blocks.{block}.{layer}.lora_{part}" for block in (0, 1) for layer in layers for part in "ab"}
    assert set(tensors) == names | {"head.weight", "head.bias"}
    assert card == read_card(tmp_path / "lora.safetensors")
    assert said.backbone == backbone_digest(load(base)[0])
    # Two blocks of rank 8, and 3 x 49 weights of the classifier; the rest is card.
    numbers = 2 * 8 * ((48 + 144) + (48 + 48) + 2 * (48 + 192)) + 3 * 49
    assert 4 * numbers < adapter.stat().st_size < 4 * numbers + 6_000 < 100_000
    assert 3 * adapter.stat().st_size < base.stat().st_size


@torch.no_grad()
def test_the_digest_is_of_the_frozen_weights(base):
    model, _ = load(base)
    digest = backbone_digest(model)
    model.head.weight += 1
    add_lora(model, targets=["q", "fc2"], rank=2, alpha=1.0)
    assert backbone_digest(model) == digest, "neither adapters nor classifier count"
    model.reset_classifier(7)
    assert backbone_digest(model) == digest
    merge_lora(model)
    assert backbone_digest(model) == digest, "adapters of zero change nothing"
    model.blocks[1].norm2.bias[0] += 1e-7
    assert backbone_digest(model) != digest
    model.blocks[1].norm2.bias[0] -= 1e-7
    assert backbone_digest(model.double()) != digest, "another type"


@torch.no_grad()
def test_statistics_of_batch_norm_travel_with_the_adapter(tmp_path):
    """Training updates them though LoRA freezes the weights."""
    base, ours = tmp_path / "base" / "model.safetensors", tmp_path / "ours" / "lora.safetensors"
    model = build("mobilevit_xxs", classes=3, channels=3)
    card = make_card(architecture="mobilevit_xxs", stages=("train",))
    save(model, card, base)
    add_lora(model, targets=["qkv"], rank=2, alpha=2.0)
    for buffer in model.buffers():
        buffer += 1
    lora = Lora(targets=("qkv",), rank=2, alpha=2.0)
    save(model, dataclasses.replace(card, build=dataclasses.replace(card.build, lora=lora)), ours)
    again = load(apply_adapter(base, extract_adapter(ours), tmp_path / "again"))[0].state_dict()
    theirs = load(merge(ours, ours.with_name("model.safetensors")))[0].state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.items())
    assert again["stem.bn.running_mean"].eq(1).all()


def test_another_set_of_labels_in_the_base(base, tmp_path):
    """As after `pocketzoo import` of pretrained weights: the adapter brings its own classifier."""
    _adapted(base, tmp_path / "ours")
    other = tmp_path / "other" / "model.safetensors"
    model = _base(other, labels=("a", "b", "c", "d", "e"))
    state = load(base)[0].state_dict()
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")}, strict=False)
    save(model, read_card(other), other)
    again = apply_adapter(other, extract_adapter(tmp_path / "ours"), tmp_path / "again")
    assert read_card(again).use.labels == LABELS
    assert sha256_file(again.with_name("lora.safetensors")) == sha256_file(tmp_path / "ours" / "lora.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"is not what .*adapter\.safetensors was trained beside: .* wants [0-9a-f]{12} \(of vit_tiny"),
        (
            {"embed_dim": 96},
            r"its blocks\.0\.attn\.qkv\.lora_a \(2, 4, 48\) does not fit blocks\.0\.attn\.qkv of .* \(288, 96\)",
        ),
        ({"depth": 1}, r"adapts blocks\.1\.attn\.qkv, which .*other.* does not have"),
        ({"depth": 3}, r"is not what .* was trained beside"),
    ],
)
def test_another_base_is_refused_by_name(base, tmp_path, changes, message):
    _adapted(base, tmp_path / "ours")
    other = tmp_path / "other" / "model.safetensors"
    _base(other, **changes)
    adapter = extract_adapter(tmp_path / "ours")
    with pytest.raises(ArtefactError, match=message):
        apply_adapter(other, adapter, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_another_architecture_is_refused(base, tmp_path):
    _adapted(base, tmp_path / "ours")
    other = tmp_path / "lenet.safetensors"
    save(build("lenet", classes=3, channels=3), make_card(stages=("train",)), other)
    with pytest.raises(ArtefactError, match=r"adapts vit_tiny_patch16_224, .*lenet\.safetensors is lenet"):
        apply_adapter(other, extract_adapter(tmp_path / "ours"), tmp_path / "again")


def test_a_base_with_separate_adapters_or_that_is_the_target(base, tmp_path):
    _adapted(base, tmp_path / "ours")
    adapter = extract_adapter(tmp_path / "ours")
    with pytest.raises(ArtefactError, match=r"lora\.safetensors has adapters of its own that are not merged"):
        apply_adapter(tmp_path / "ours" / "lora.safetensors", adapter, tmp_path / "again")
    before = sha256_file(base)
    with pytest.raises(ArtefactError, match="is the base itself"):
        apply_adapter(base, adapter, base.parent)
    assert sha256_file(base) == before


def test_what_is_no_adapter(base, tmp_path):
    _adapted(base, tmp_path)
    with pytest.raises(ArtefactError, match=r"no adapter at .*gone"):
        read_adapter(tmp_path / "gone.safetensors")
    with pytest.raises(ArtefactError, match=r"no `zoo\.adapter` in its metadata"):
        read_adapter(base)
    (tmp_path / "text").write_text("no")
    with pytest.raises(ArtefactError, match="not a safetensors file"):
        read_adapter(tmp_path / "text")
    with pytest.raises(ArtefactError, match=r"no unmerged checkpoint at .*base.lora\.safetensors; .* cannot be undone"):
        extract_adapter(base.parent)
    with pytest.raises(ArtefactError, match="no LoRA adapters to merge or to extract"):
        extract_adapter(base)
    with pytest.raises(ArtefactError, match="its card describes no LoRA adapters"):
        write_adapter(load(tmp_path / "lora.safetensors")[0], _card(), "0" * 64, tmp_path / "x")


@pytest.mark.parametrize(
    ("header", "error", "message"),
    [
        ({"zoo.adapter": "{"}, ArtefactError, r"odd\.safetensors: Expecting"),
        ({"zoo.adapter": '{"backbone": 3}'}, ArtefactError, r"zoo\.adapter\.backbone: expected str, got 3"),
        ({"zoo.adapter": '{"backbone": "", "schema": "zoo.adapter/2"}'}, ArtefactError, r"this version reads 'zoo\.a"),
        ({"zoo.adapter": '{"backbone": ""}'}, CardError, r"no `zoo\.card` in its metadata"),
        ({"zoo.adapter": '{"backbone": ""}', KEY: to_json(_card())}, ArtefactError, "its card describes no LoRA"),
    ],
)
def test_malformed_files(tmp_path, header, error, message):
    path = tmp_path / "odd.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata=header)
    with pytest.raises(error, match=message):
        read_adapter(path)


def test_on_the_command_line(base, tmp_path):
    merged = _adapted(base, tmp_path / "ours")
    told = json.loads(run_cli("adapter", "extract", tmp_path / "ours", "--json").output)
    assert (told["path"], told["tensors"]) == (str(tmp_path / "ours" / "adapter.safetensors"), 2 * 2 * 2 + 2)
    assert told["bytes"] == Path(told["path"]).stat().st_size < 100_000
    result = run_cli("adapter", "extract", tmp_path / "ours", "--out", tmp_path / "mine.safetensors")
    assert "belongs to weights" in result.output and told["backbone"][:12] in result.output
    out = tmp_path / "again"
    result = run_cli("adapter", "apply", tmp_path / "mine.safetensors", "--base", base.parent, "--out", out)
    assert result.exit_code == 0 and "not measured" in result.output
    ours, again = load(merged)[0].state_dict(), load(out / "model.safetensors")[0].state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in again.items())
