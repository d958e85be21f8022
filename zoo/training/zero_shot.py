"""CLIP as an artefact: labels become the classifier of its image tower, at import and for other labels later."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from zoo.artefact.card import Build, Card, Inform, LineageEntry, Use
from zoo.artefact.predictor import Prediction, ranked, softmax
from zoo.artefact.preprocess import batch
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import TEXTS, checkpoint_path, code_commit, output_root, sha256_file
from zoo.networks.checkpoint import load, read_card, save
from zoo.networks.registry import count_macs, last_layers
from zoo.networks.weights.first_weights import weights_digest
from zoo.networks.weights.labels import read_labels
from zoo.networks.zero_shot.clip import Texts, check_templates, find_clip, load_clip, load_texts, save_texts
from zoo.networks.zero_shot.towers import agreement, check_tower, timm_tower, with_texts
from zoo.training.pretrained import already_imported

__all__ = ["TEMPLATE", "ZeroShot", "clip_folder", "import_clip"]

TEMPLATE = "a photo of a {}"
"""What CLIP's authors found to be better than a label alone (arXiv 2103.00020, section 3.1.4)."""

_KEEPING = ("import", "prune", "recalibrate")
"""Stages after which an image still lies where its texts do, if less exactly; trainings move it to their labels."""


def clip_folder(name: str, labels: Path | None) -> Path:
    """Where an import goes unless told otherwise: output/NAME-LABELS."""
    return output_root() / f"{name.replace('/', '-')}-{_given(labels).stem}"


def import_clip(
    name: str,
    target: Path,
    *,
    labels: Path | None,
    templates: Sequence[str] = (TEMPLATE,),
    weights: str = "pretrained",
) -> Card:
    """Make an artefact of a CLIP and labels; its logits are those of open_clip.

    Args:
        name: NAME or NAME.TAG, see zoo.networks.zero_shot.clip.find_clip.
        target: the checkpoint to write; texts.safetensors beside it embeds other labels later.
        labels: a text file with one label per line.
        templates: texts with `{}` in the label's place, whose embeddings are averaged.
        weights: `pretrained`, or a checkpoint of open_clip.

    Returns:
        The card as written, or of what is there if it is the same import.

    Raises:
        UsageError: an unknown name, no labels, a template without `{}`, a tower without an exact counterpart in timm,
            or the folder has another artefact, which stays.
        ArtefactError: the weights cannot be had, do not fit, or make timm's network answer otherwise.
    """
    begin = time.perf_counter()
    words = read_labels(_given(labels))
    check_templates(templates)
    clip = find_clip(name, weights)
    check_tower(clip.name, clip.config)
    config = {
        "clip": clip.full_name,
        "weights": weights_digest(weights),
        "labels": sha256_file(_given(labels)),
        "templates": list(templates),
    }
    texts_path = target.with_name(TEXTS)
    there = already_imported(target, config)
    if there is not None and texts_path.is_file() and sha256_file(texts_path) == _digest(there):
        return there
    model = load_clip(clip, weights)
    tower = timm_tower(model.get_submodule("visual"), clip.name, clip.config)
    network = with_texts(tower, *Texts(model=model, config=clip.config).classifier(words, templates))
    difference = agreement(network, model.get_submodule("visual"), clip.name, clip.input.size)
    # Before the checkpoint, which is what says that the import is done.
    save_texts(model, clip, texts_path)
    entry = LineageEntry(
        stage="import",
        config=config,
        parent=None,
        commit=code_commit(),
        summary={"classes": len(words), "difference": difference, "texts": sha256_file(texts_path)},
        seconds=round(time.perf_counter() - begin, 1),
    )
    source = f"open_clip:{clip.full_name}" if weights == "pretrained" else f"file:{Path(weights).name}"
    card = Card(
        name=target.parent.resolve().name,
        build=Build(architecture=tower.architecture, arguments=tower.arguments, head=tower.head),
        use=Use(labels=words, input=clip.input),
        inform=Inform(parameters=0, bytes=0, macs=count_macs(network, clip.input), source=source),
        lineage=(entry,),
    )
    return save(network, card, target)


class ZeroShot:
    """An artefact made of a CLIP that answers with other labels than its own; torch computes.

    `card` is the artefact's, with the labels that are asked for.
    """

    engine = "torch"

    def __init__(self, artefact: Path, labels: Sequence[str]) -> None:
        """Embed the labels, with the templates that the artefact was imported with.

        Args:
            artefact: folder or checkpoint; texts.safetensors stands beside it.
            labels: at least two.

        Raises:
            UsageError: fewer labels or some twice, a network that is no CLIP, or one that was trained since.
            ArtefactError: no checkpoint, no texts.safetensors, or one of another import.
        """
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise UsageError(f"--labels: expected at least two different labels, got {', '.join(labels) or 'none'}")
        path = checkpoint_path(artefact)
        card = read_card(path)
        _check_untrained(card)
        texts = path.with_name(TEXTS)
        reader = load_texts(texts)
        if sha256_file(texts) != _digest(card):
            raise ArtefactError(f"{texts} belongs to another import than {card.name}; copy the one beside its import")
        self._model, card = load(path)
        weight, bias = reader.classifier(labels, card.lineage[0].config["templates"])
        (last,) = last_layers(self._model)
        if weight.shape[1] != last.weight.shape[1]:
            raise ArtefactError(
                f"{card.name}: {weight.shape[1]} features of a text for {last.weight.shape[1]} of an image, some of "
                "which were pruned; ask the network that it was pruned from"
            )
        last.weight, last.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        self.card = dataclasses.replace(card, use=dataclasses.replace(card.use, labels=tuple(labels), golden=None))

    def predict(self, images: Sequence[bytes], *, top: int = 5) -> list[Prediction]:
        """Answer image files with their `top` most probable labels.

        Raises:
            ImageError: one of them cannot be decoded.
        """
        use = self.card.use
        with torch.inference_mode():
            logits = self._model(torch.from_numpy(batch(images, use.input))).numpy()
        return ranked(softmax(logits, use.temperature), use.labels, top=top)


def _given(labels: Path | None) -> Path:
    if labels is None:
        raise UsageError("--clip needs --labels FILE with one label per line: its classifier is made of them")
    return labels


def _digest(card: Card) -> object:
    """SHA-256 of the texts.safetensors that belongs to an artefact."""
    return card.lineage[0].summary.get("texts")


def _check_untrained(card: Card) -> None:
    if not card.lineage or "clip" not in card.lineage[0].config:
        raise UsageError(
            f"{card.name} knows its own labels only; other ones can be asked of what `pocketzoo import --clip` made"
        )
    if moved := [entry.stage for entry in card.lineage if entry.stage not in _KEEPING]:
        raise UsageError(
            f"{card.name} was trained on its labels ({moved[0]}), so that its features no longer lie where texts do; "
            "ask the artefact that it started from"
        )
