"""Import: pretrained networks as artefacts, with the labels and the preprocessing of those who trained them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

from tests.zoo.factories import TINY_VIT, encode, make_card, picture, write_artefact
from zoo.artefact.card import Resize
from zoo.artefact.preprocess import decode, preprocess
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import CHECKPOINT, GRAPH, sha256_file
from zoo.networks.checkpoint import load, read_card, save
from zoo.networks.registry import build
from zoo.training.pretrained import import_network, plan_import

ARCHITECTURE = "vit_tiny_patch16_224"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A state dict of a tiny ViT with three outputs."""
    torch.manual_seed(1)
    path = tmp_path / "weights.safetensors"
    save_file(build(ARCHITECTURE, classes=3, channels=3, arguments=TINY_VIT).state_dict(), path)
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "pets.txt"
    path.write_text("cat\ndog\nhen\n")
    return path


def test_a_local_file_with_labels(tmp_path, weights, labels):
    target = tmp_path / "pets" / CHECKPOINT
    card = import_network(ARCHITECTURE, target, weights=str(weights), labels=labels, arguments=TINY_VIT)
    assert card == read_card(target)
    assert (card.name, card.use.labels, card.use.input.size) == ("pets", ("cat", "dog", "hen"), (32, 32))
    assert (card.inform.source, card.inform.licence, card.inform.metrics) == ("file:weights.safetensors", None, ())
    (entry,) = card.lineage
    assert (entry.stage, entry.parent) == ("import", None)
    assert entry.config == {
        "architecture": ARCHITECTURE,
        "arguments": TINY_VIT,
        "weights": sha256_file(weights),
        "labels": sha256_file(labels),
        "size": None,
    }
    assert entry.summary == {"label_set": "pets", "classes": 3}
    assert card.inform.macs > 0
    model, _ = load(target)
    donor = build(ARCHITECTURE, classes=3, channels=3, arguments=TINY_VIT).eval()
    donor.load_state_dict(load_file(weights))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), donor(images), rtol=0, atol=0)


def test_lite0_from_its_package():
    plan = plan_import("tf_efficientnet_lite0")
    assert (plan.label_set, len(plan.labels), plan.labels[310]) == ("imagenet-1k", 1000, "ant")
    assert plan.input.size == (224, 224)
    assert plan.input.resize == Resize(rule="shorter", edge=256, filter="bicubic")
    assert (plan.input.mean, plan.input.std) == ((0.5,) * 3, (0.5,) * 3)
    assert plan.folder.name == "tf_efficientnet_lite0-imagenet-1k"


@pytest.mark.parametrize(
    "name",
    [
        "tf_efficientnet_lite0",
        "resnet50.tv_in1k",
        "resnet50.a1_in1k",
        "vit_base_patch16_224",
        "convnext_tiny.fb_in22k",
        "mobilenetv3_large_100",
        "efficientnet_b1",
        "inception_v3",
        "tf_efficientnetv2_m.in21k_ft_in1k",
    ],
)
def test_preprocessing_is_timms(name):
    spec = plan_import(name).input
    config = timm.get_pretrained_cfg(name).to_dict()
    evaluate = create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)
    smooth = np.kron(picture(3, 30, 40), np.ones((12, 11, 1), dtype=np.uint8))
    data = encode(smooth)
    wanted = evaluate(decode(data).convert("RGB")).numpy()
    np.testing.assert_allclose(preprocess(data, spec), wanted, rtol=0, atol=1e-6)


def test_labels_follow_the_number_of_outputs():
    assert plan_import("vit_base_patch16_224.augreg_in21k").label_set == "imagenet-21k-goog"
    assert plan_import("convnext_tiny.in12k").label_set == "imagenet-12k"


def test_a_local_file_with_imagenets_outputs(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "w.pt"
    torch.save({"model": build(ARCHITECTURE, classes=1000, channels=3, arguments=TINY_VIT).state_dict()}, path)
    plan = plan_import(ARCHITECTURE, weights=str(path), arguments=TINY_VIT)
    assert (plan.label_set, plan.labels[309]) == ("imagenet-1k", "bee")


def test_the_same_import_is_not_repeated_and_others_stay(tmp_path, weights, labels):
    target = tmp_path / "pets" / CHECKPOINT
    options = {"weights": str(weights), "labels": labels, "arguments": TINY_VIT}
    first = import_network(ARCHITECTURE, target, **options)
    before = target.stat().st_mtime_ns
    assert import_network(ARCHITECTURE, target, **options) == first
    labels.write_text("hen\ndog\ncat\n")
    with pytest.raises(UsageError, match=r"pets has another artefact already \(pets, made by import\).*another folder"):
        import_network(ARCHITECTURE, target, **options)
    assert target.stat().st_mtime_ns == before


def test_a_trained_artefact_or_a_lone_graph_is_never_destroyed(tmp_path, weights, labels):
    options = {"weights": str(weights), "labels": labels, "arguments": TINY_VIT}
    trained = tmp_path / "trained" / CHECKPOINT
    save(build("lenet", classes=3, channels=3), make_card(stages=("train", "prune")), trained)
    graph = tmp_path / "graph" / GRAPH
    write_artefact(graph)
    broken = tmp_path / "broken" / CHECKPOINT
    broken.parent.mkdir()
    broken.write_bytes(b"junk")
    for path, what in ((trained, "tiny, made by train and prune"), (graph, GRAPH), (broken, CHECKPOINT)):
        digest = sha256_file(path)
        with pytest.raises(UsageError, match=rf"has another artefact already \({what}\), which stays as it is"):
            import_network(ARCHITECTURE, path.with_name(CHECKPOINT), **options)
        assert sha256_file(path) == digest
    assert sorted(path.name for path in graph.parent.iterdir()) == [GRAPH]


def _refused(message: str, name: str = ARCHITECTURE, error: type[Exception] = UsageError, **options: object) -> None:
    with pytest.raises(error, match=message):
        plan_import(name, **options)


def test_names_that_are_refused(tmp_path, weights):
    _refused("unknown model 'resnet5'; did you mean .*resnet50", "resnet5")
    _refused("unknown tag of resnet50 'a1_in2k'; did you mean .*a1_in1k", "resnet50.a1_in2k")
    _refused(r"is a file or folder; name the architecture .*--weights FILE \(an ONNX file", str(weights))
    _refused(r"model\.onnx is a file or folder", "model.onnx")
    _refused("random weights has learnt nothing that could be imported", weights="none")
    _refused(r"no weights at .*gone\.pt", error=ArtefactError, weights="gone.pt")


def test_a_folder_that_is_named_like_an_architecture_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("resnet50").mkdir()
    assert plan_import("resnet50").label_set == "imagenet-1k"


def test_labels_that_are_refused(weights, labels):
    options = {"weights": str(weights), "arguments": TINY_VIT}
    _refused(f"{ARCHITECTURE} has 3 outputs, which is no edition of ImageNet .*--labels FILE", **options)
    labels.write_text("cat\ndog\n")
    _refused(r"pets\.txt: expected 3 labels, one for each output of vit_tiny\w+, got 2", labels=labels, **options)
    _refused("has 512 outputs, which is no edition", "vit_medium_patch16_clip_224.tinyclip_yfcc15m")


def test_networks_that_are_refused():
    _refused("there are no pretrained weights for coatnet_0_224", "coatnet_0_224")
    _refused("there are no pretrained weights for lenet", "lenet")
    _refused("pretrained to make features, it has no labels: train it", "vit_small_patch14_dinov2")
    _refused("it has no labels: choose convnext_base.clip_laion2b_augreg_ft_in1k, ", "convnext_base.dinov3_lvd1689m")
    _refused(
        r"crop_mode='squash', crop_pct=0\.95 .*which the preprocessing here cannot do; choose other weights",
        "vit_base_patch16_clip_384.openai_ft_in12k_in1k",
    )


def test_a_network_of_unknown_preprocessing_is_refused(tmp_path, labels):
    path = tmp_path / "w.pt"
    torch.save(build("lenet", classes=3, channels=3).state_dict(), path)
    _refused("nobody has published what images lenet was trained with", "lenet", weights=str(path), labels=labels)


def test_labels_in_the_file_of_the_weights(tmp_path, weights, labels):
    content = {"state_dict": {f"model.{name}": tensor for name, tensor in load_file(weights).items()}}
    torch.save(content | {"hyper_parameters": {"classes": ["ape", "bee", "cow"]}}, tmp_path / "zoo.ckpt")
    options = {"weights": str(tmp_path / "zoo.ckpt"), "arguments": TINY_VIT}
    plan = plan_import(ARCHITECTURE, **options)
    assert (plan.label_set, plan.labels) == ("zoo", ("ape", "bee", "cow"))
    assert plan_import(ARCHITECTURE, **options, labels=labels).labels == ("cat", "dog", "hen")
    card = import_network(ARCHITECTURE, tmp_path / "zoo" / CHECKPOINT, **options)
    assert card.use.labels == ("ape", "bee", "cow")
    model, _ = load(tmp_path / "zoo" / CHECKPOINT)
    assert torch.equal(model.head.weight, load_file(weights)["head.weight"])


def test_imagenets_synsets_in_the_file_are_shown_as_words(tmp_path):
    arguments, synsets = TINY_VIT | {"depth": 1}, timm.data.ImageNetInfo("imagenet-1k").label_names()
    model = build(ARCHITECTURE, classes=1000, channels=3, arguments=arguments)
    torch.save({"model": model.state_dict(), "label_names": synsets}, tmp_path / "w.pt")
    plan = plan_import(ARCHITECTURE, weights=str(tmp_path / "w.pt"), arguments=arguments)
    assert (plan.label_set, plan.labels[0]) == ("imagenet-1k", "tench")


def test_files_that_are_refused(tmp_path, labels):
    path = tmp_path / "w.pt"
    torch.save(build(ARCHITECTURE, classes=3, channels=3, arguments=TINY_VIT), path)
    _refused(
        r"w\.pt: .*expected a dictionary of tensors, found .* and Python objects \(timm\..* not run",
        error=ArtefactError,
        weights=str(path),
    )
    path.write_bytes(pickle.dumps({"a": 1}))
    _refused(r"without executing code: ", error=ArtefactError, weights=str(path))
    torch.save({"fc.weight": torch.zeros(3, 8)}, path)
    _refused(r"no classifier 'head\.weight' of VisionTransformer in it, found", error=ArtefactError, weights=str(path))


def test_broken_weights_are_refused(tmp_path, weights, labels):
    tensors = load_file(weights)
    save_file(tensors | {"head.bias": torch.full((3,), torch.nan)}, weights)
    target = tmp_path / "pets" / CHECKPOINT
    with pytest.raises(ArtefactError, match="answers with what is no number: the weights of file:weights"):
        import_network(ARCHITECTURE, target, weights=str(weights), labels=labels, arguments=TINY_VIT)
    assert not target.exists()


def test_a_size_that_it_does_not_take(tmp_path, weights, labels):
    with pytest.raises(UsageError, match="does not take 64 x 64 pixels"):
        import_network(
            ARCHITECTURE, tmp_path / "x" / CHECKPOINT, weights=str(weights), labels=labels, arguments=TINY_VIT, size=64
        )
