"""A CLIP as an artefact: exact against open_clip, and through every stage after it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from compress.prune.stage import prune
from compress.quantize.stage import quantize
from tests.conftest import run_cli
from tests.zoo.factories import encode, make_samples, picture
from tests.zoo.networks.zero_shot.tiny import CONFIGS, LABELS, make_clip, open_clips_scores, register
from zoo.artefact import onnx_file
from zoo.artefact.card import Card
from zoo.artefact.predictor import Predictor, softmax
from zoo.artefact.preprocess import batch
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH, TEXTS, sha256_file
from zoo.main import main
from zoo.networks.checkpoint import load, read_card, save
from zoo.networks.registry import classifier, last_layers
from zoo.training.recipe import PruneConfig, QuantizeConfig
from zoo.training.zero_shot import ZeroShot, import_clip

TEMPLATES = ("a photo of a {}", "a drawing of the {}.")
FILES = [encode(picture(seed, 40, 48)) for seed in range(5)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every tiny CLIP, and labels."""
    folder = tmp_path_factory.mktemp("sources")
    register(folder)
    for name in CONFIGS:
        make_clip(name, folder / f"{name}.pt")
    (folder / "pets.txt").write_text("\n".join(LABELS))
    return folder


@pytest.fixture(scope="module")
def imported(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of artefacts, with tiny-vit imported and exported; not to be changed."""
    folder = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETZOO_OUTPUT", str(folder))
        done = run_cli(*_command(sources))
    assert done.exit_code == 0 and "vit_base_patch16_clip_224 of file:tiny-vit.pt, 3 labels" in done.output
    return folder


@pytest.fixture
def output(imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it that may be changed."""
    shutil.copytree(imported, tmp_path / "output")
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))
    yield tmp_path / "output"


def _command(sources: Path) -> list[str | Path]:
    templates = [part for template in TEMPLATES for part in ("--template", template)]
    files = ["--weights", sources / "tiny-vit.pt", "--labels", sources / "pets.txt"]
    return ["import", "--clip", "tiny-vit", *files, *templates]


def _wanted(
    name: str, path: Path, labels: tuple[str, ...] = LABELS, templates: tuple[str, ...] = TEMPLATES
) -> np.ndarray:
    """open_clip's own zero-shot logits [5, K] of the files, from the weights as they were before the import."""
    spec = read_card(path).use.input
    model: nn.Module = make_clip(name, path.parent / "again.pt")
    (path.parent / "again.pt").unlink()
    return open_clips_scores(model, torch.from_numpy(batch(FILES, spec)), labels, templates).numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_open_clips_also_from_the_exported_file(sources, tmp_path, name):
    path = tmp_path / name / CHECKPOINT
    weights = sources / f"{name}.pt"
    card = import_clip(name, path, labels=sources / "pets.txt", templates=TEMPLATES, weights=str(weights))
    assert (card.use.labels, card.inform.source, card.build.head.kind) == (LABELS, f"file:{name}.pt", "cosine")
    assert card.lineage[0].config == {
        "clip": name,
        "weights": sha256_file(weights),
        "labels": sha256_file(sources / "pets.txt"),
        "templates": list(TEMPLATES),
    }
    assert card.lineage[0].summary["difference"] < 1e-6
    assert card.lineage[0].summary["texts"] == sha256_file(path.with_name(TEXTS))
    wanted = _wanted(name, path)
    assert wanted.std(axis=0).min() > 1e-2, "images that all get the same answer would tell nothing"
    model, _ = load(path)
    images = batch(FILES, card.use.input)
    with torch.inference_mode():
        np.testing.assert_allclose(model(torch.from_numpy(images)).numpy(), wanted, rtol=0, atol=1e-5)
    assert run_cli("export", path.parent).exit_code == 0
    exported = Predictor(path.with_name(GRAPH))
    np.testing.assert_allclose(exported.logits(images), wanted, rtol=0, atol=1e-4)
    answers = exported.predict(FILES, top=1)
    assert [a.labels[0] for a in answers] == [LABELS[i] for i in wanted.argmax(axis=1)]


def test_several_templates_are_averaged_as_embeddings_of_length_one(sources, output, tmp_path):
    """Section 3.1.4 of CLIP's paper, written out."""
    path = output / "tiny-vit-pets" / CHECKPOINT
    model = make_clip("tiny-vit", tmp_path / "w.pt")
    tokenizer = open_clip.SimpleTokenizer(context_length=20)
    rows = []
    with torch.no_grad():
        for label in LABELS:
            texts = model.encode_text(tokenizer([template.replace("{}", label) for template in TEMPLATES]))
            mean = (texts / texts.norm(dim=1, keepdim=True)).mean(dim=0)
            rows.append(model.logit_scale.exp() * mean / mean.norm())
    (last,) = last_layers(load(path)[0])
    torch.testing.assert_close(last.weight, torch.stack(rows), rtol=0, atol=1e-5)
    one = import_clip("tiny-vit", tmp_path / "one" / CHECKPOINT, labels=sources / "pets.txt", **_weights(sources))
    assert one.lineage[0].config["templates"] == ["a photo of a {}"]
    (other,) = last_layers(load(tmp_path / "one" / CHECKPOINT)[0])
    assert (other.weight - last.weight).abs().max() > 1e-3


def _weights(sources: Path) -> dict[str, str]:
    return {"weights": str(sources / "tiny-vit.pt")}


def test_the_same_import_is_not_repeated_and_others_stay(sources, output):
    folder = output / "tiny-vit-pets"
    assert sorted(path.name for path in folder.iterdir()) == [GRAPH, CHECKPOINT, TEXTS]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run_cli(*_command(sources)).exit_code == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(UsageError, match=r"tiny-vit-pets has another artefact already"):
        run_cli(*_command(sources), "--template", "{}")
    digest = sha256_file(folder / TEXTS)
    (folder / TEXTS).unlink()
    run_cli(*_command(sources))
    assert sha256_file(folder / TEXTS) == digest


def test_other_labels_without_training(sources, output, tmp_path):
    labels = ("a red bus", "a blue boat", "a green train", "an aeroplane")
    artefact = output / "tiny-vit-pets"
    wanted = softmax(_wanted("tiny-vit", artefact / CHECKPOINT, labels), 1.0)
    found = ZeroShot(artefact, labels)
    assert (found.card.use.labels, found.engine) == (labels, "torch")
    for answer, row in zip(found.predict(FILES, top=4), wanted, strict=True):
        assert answer.labels == tuple(labels[i] for i in np.argsort(-row))
        np.testing.assert_allclose(answer.probabilities, -np.sort(-row), atol=1e-5)
    images = [tmp_path / f"{number}.png" for number in range(2)]
    for path, data in zip(images, FILES[:2], strict=True):
        path.write_bytes(data)
    (tmp_path / "other.txt").write_text("\n".join(labels))
    for given in (", ".join(labels), tmp_path / "other.txt"):
        done = run_cli("predict", artefact, *images, "--labels", given, "--json")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["labels"][0]["label"] for line in lines] == [labels[i] for i in wanted[:2].argmax(axis=1)]
        assert {line["engine"] for line in lines} == {"torch"}
    own = json.loads(run_cli("predict", artefact, images[0], "--json").stdout)
    assert {entry["label"] for entry in own["labels"]} == set(LABELS)


def test_other_labels_that_are_refused(sources, output, tmp_path):
    artefact, image = output / "tiny-vit-pets", tmp_path / "a.png"
    image.write_bytes(FILES[0])
    for labels in ("cat", "", "cat,cat"):
        with pytest.raises(UsageError, match="--labels: expected at least two different labels"):
            run_cli("predict", artefact, image, "--labels", labels)
    with pytest.raises(UsageError, match="--engine computes a file with its own labels; with --labels torch"):
        run_cli("predict", artefact, image, "--labels", "cat,dog", "--engine", "onnxruntime")
    texts = artefact / TEXTS
    other = tmp_path / "other" / CHECKPOINT
    import_clip("tiny-bias", other, labels=sources / "pets.txt", weights=str(sources / "tiny-bias.pt"))
    kept = texts.read_bytes()
    shutil.copy(other.with_name(TEXTS), texts)
    with pytest.raises(ArtefactError, match=r"texts\.safetensors belongs to another import than tiny-vit-pets"):
        ZeroShot(artefact, ("cat", "dog"))
    texts.unlink()
    with pytest.raises(ArtefactError, match=r"no texts\.safetensors in .*pocketzoo import --clip"):
        ZeroShot(artefact, ("cat", "dog"))
    texts.write_bytes(kept)
    model, card = load(artefact / CHECKPOINT)
    save(model, _without_clip(card), artefact / CHECKPOINT)
    with pytest.raises(UsageError, match=r"tiny-vit-pets knows its own labels only; other ones .*import --clip"):
        ZeroShot(artefact, ("cat", "dog"))


def _without_clip(card: Card) -> Card:
    config = {key: value for key, value in card.lineage[0].config.items() if key != "clip"}
    return dataclasses.replace(card, lineage=(dataclasses.replace(card.lineage[0], config=config),))


def test_it_quantizes(output):
    artefact = output / "tiny-vit-pets"
    done = quantize(
        artefact / GRAPH,
        artefact / INT8_GRAPH,
        QuantizeConfig(images=64, keep="any"),
        images=make_samples(64, size=40),
        timed=False,
    )
    assert done.written
    card = onnx_file.read_card(artefact / INT8_GRAPH)
    assert [entry.stage for entry in card.lineage] == ["import", "export", "quantize"]
    images = batch(FILES, card.use.input)
    whole, small = (Predictor(artefact / name).logits(images) for name in (GRAPH, INT8_GRAPH))
    assert 0 < np.abs(whole - small).max() < 0.5 * np.abs(whole).max()
    assert np.corrcoef(whole.ravel(), small.ravel())[0, 1] > 0.9


def test_it_is_pruned_and_still_reads_texts(output):
    artefact, smaller = output / "tiny-vit-pets", output / "tiny-vit-pets-pruned"
    done = prune(artefact / CHECKPOINT, smaller / CHECKPOINT, PruneConfig(macs=0.8, round_to=1))
    assert done.macs_after <= 0.8 * done.macs_before
    assert ("head (Sequential)", "its features are those that images share with texts") in [
        (kept.layer, kept.reason) for kept in done.kept
    ]
    model, card = load(smaller / CHECKPOINT)
    assert [type(layer).__name__ for layer in classifier(model)] == ["Linear", "UnitLength", "Linear"]
    assert classifier(model)[0].out_features == 24, "the features that images and texts share stay"
    assert card.use.labels == LABELS
    assert run_cli("export", smaller).exit_code == 0
    with pytest.raises(ArtefactError, match=r"no texts\.safetensors in"):
        ZeroShot(smaller, ("cat", "dog"))
    shutil.copy(artefact / TEXTS, smaller / TEXTS)
    (answer,) = ZeroShot(smaller, LABELS).predict(FILES[:1])
    (own,) = Predictor(smaller / GRAPH).predict(FILES[:1])
    assert answer.labels == own.labels
    np.testing.assert_allclose(answer.probabilities, own.probabilities, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny-convnext", "tiny-bias"])
def test_other_towers_are_pruned_before_their_embedding(sources, tmp_path, name):
    path, smaller = tmp_path / "whole" / CHECKPOINT, tmp_path / "smaller" / CHECKPOINT
    import_clip(name, path, labels=sources / "pets.txt", weights=str(sources / f"{name}.pt"))
    done = prune(path, smaller, PruneConfig(macs=0.8, round_to=1))
    assert done.macs_after <= 0.8 * done.macs_before
    model, whole = load(smaller)[0], load(path)[0]
    assert last_layers(model)[0].weight.equal(last_layers(whole)[0].weight)
    shutil.copy(path.with_name(TEXTS), smaller.with_name(TEXTS))
    assert len(ZeroShot(smaller.parent, ("cat", "dog")).predict(FILES)) == len(FILES)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of each label to train on, six to validate on; folders sort otherwise than the labels' file."""
    folder = tmp_path_factory.mktemp("photographs")
    for split, count, start in (("train", 12, 0), ("val", 6, 500)):
        for number, label in enumerate(LABELS):
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                image = picture(start + 100 * number + index, 40, 48)
                (folder / split / label / f"{index}.png").write_bytes(encode(image))
    return folder


def _fine_tune(photographs: Path, name: str, *settings: str) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    start = ("--set", "start=tiny-vit-pets", "--set", f"name={name}")
    run_cli("train", "--data", photographs, *start, "--epochs", "1", "--no-page", *options)


def test_fine_tuning_starts_from_the_zero_shot_classifier(output, photographs):
    _fine_tune(photographs, "still", "train.lr=1e-12", "train.batch_size=12")
    still, card = load(output / "still" / CHECKPOINT)
    assert card.use.labels == tuple(sorted(LABELS)) != LABELS
    assert [entry.stage for entry in card.lineage] == ["import", "train"]
    assert card.build == read_card(output / "tiny-vit-pets" / CHECKPOINT).build
    wanted = _wanted("tiny-vit", output / "tiny-vit-pets" / CHECKPOINT)
    with torch.inference_mode():
        found = still(torch.from_numpy(batch(FILES, card.use.input))).numpy()
    np.testing.assert_allclose(found, wanted[:, [LABELS.index(label) for label in card.use.labels]], atol=1e-3)
    _fine_tune(photographs, "tuned", "train.lr=1e-3", "train.batch_size=12")
    tuned, _ = load(output / "tuned" / CHECKPOINT)
    with torch.inference_mode():
        moved = tuned(torch.from_numpy(batch(FILES, card.use.input))).numpy()
    assert np.abs(moved - found).max() > 0.05
    with pytest.raises(
        UsageError, match=r"tuned was trained on its labels \(train\).*ask the artefact that it started"
    ):
        ZeroShot(output / "tuned", ("cat", "dog"))


def test_other_labels_of_a_training_get_a_new_last_layer(output, photographs, tmp_path):
    other = tmp_path / "two"
    for split in ("train", "val"):
        for label in LABELS[:2]:
            shutil.copytree(photographs / split / label, other / split / label)
    _fine_tune(other, "two", "train.lr=1e-12", "train.batch_size=12")
    model, card = load(output / "two" / CHECKPOINT)
    assert card.use.labels == ("dog", "tabby cat")
    first, _, last = classifier(model)
    before = classifier(load(output / "tiny-vit-pets" / CHECKPOINT)[0])
    torch.testing.assert_close(first.weight, before[0].weight, rtol=0, atol=1e-6)
    assert last.weight.abs().max() < 1e-6


def test_a_start_that_is_not_there(output, photographs):
    with pytest.raises(UsageError, match=r"starts from 'gone', which no earlier run makes and which is no artefact in"):
        run_cli("train", "--data", photographs, "--set", "start=gone")


def test_without_open_clip_the_extra_is_named(sources, output, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for module in ("zoo.training.zero_shot", "zoo.networks.zero_shot.clip"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "argv", ["pocketzoo", *(str(part) for part in _command(sources))])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert "open_clip is not installed; pip install 'pocketzoo[clip]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name what to import: an architecture, like resnet50, or --clip NAME, not both"),
        (("resnet50", "--clip", "tiny-vit"), "not both"),
        (("resnet50", "--template", "a {}"), "--template goes with --clip"),
        (("--clip", "tiny-vit", "--size", "64"), "--set and --size go with an architecture"),
        (("--clip", "tiny-vit", "--set", "depth=2"), "--set and --size go with an architecture"),
        (("--clip", "tiny-vit", "--weights", "w.pt"), "--clip needs --labels FILE with one label per line"),
        (("--clip", "tiny-vit", "--labels", "gone.txt"), r"--labels gone\.txt: expected a text file"),
        (("--clip", "tiny-vit", "--labels", "LABELS", "--template", "a photo"), r"--template 'a photo': expected one"),
        (("--clip", "tiny-vot", "--labels", "LABELS"), "unknown CLIP model 'tiny-vot'; did you mean tiny-vit"),
        (("--clip", "convnext_large_d", "--labels", "LABELS", "--weights", "w.pt"), "an MLP as its projection"),
    ],
)
def test_imports_that_are_refused(sources, output, arguments, message):
    given = [str(sources / "pets.txt") if part == "LABELS" else part for part in arguments]
    with pytest.raises(UsageError, match=message):
        run_cli("import", *given)
    assert [path.name for path in output.iterdir()] == ["tiny-vit-pets"]
