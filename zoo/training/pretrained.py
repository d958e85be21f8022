"""Import as a stage: a pretrained network as it is, with its labels and its preprocessing, as an artefact."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from zoo.artefact.card import Build, Card, Inform, Input, LineageEntry, Use
from zoo.base.errors import ArtefactError, UsageError, unknown_name
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH, UNMERGED, code_commit, output_root, sha256_file
from zoo.base.size import Size
from zoo.networks.checkpoint import read_card, save
from zoo.networks.own.classic import TORCHVISION
from zoo.networks.registry import build, count_macs, input_for, names, normalised
from zoo.networks.sizes import check_size
from zoo.networks.weights.first_weights import classifier_outputs, load_weights, weights_digest
from zoo.networks.weights.labels import imagenet_labels, imagenet_names, imagenet_subset, read_labels
from zoo.networks.weights.state_dict import split_place
from zoo.training.workspace import card_if_readable, is_current, occupied

__all__ = ["ImportPlan", "already_imported", "import_network", "plan_import"]

_IMAGENET = 1000
"""Classes of the networks whose weights torchvision has."""
_FILES = frozenset({".bin", ".onnx", ".pt", ".pth", ".safetensors"})


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """What an import would make."""

    architecture: str
    arguments: Mapping[str, Any]
    weights: str
    """`pretrained`, or a file."""
    label_set: str
    """The edition of ImageNet, or the name of the file that the labels are from without its suffix."""
    labels: tuple[str, ...]
    input: Input

    @property
    def folder(self) -> Path:
        """Where it goes unless told otherwise: output/NAME-LABELS."""
        return output_root() / f"{self.architecture}-{self.label_set}"


def plan_import(
    name: str,
    *,
    weights: str = "pretrained",
    labels: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    size: Size | None = None,
) -> ImportPlan:
    """Find out the labels and the preprocessing of a pretrained network; downloads and writes nothing.

    Args:
        name: an architecture, with timm's tag where it has weights of several trainings (resnet50.a1_in1k).
        weights: `pretrained`, or a file, see zoo.networks.weights.state_dict.read_state_dict.
        labels: a text file with one label per line; None: those in the file of the weights, else ImageNet's, by the
            number of outputs.
        arguments: of the architecture.
        size: of the input; None: what the network was pretrained with.

    Raises:
        UsageError: unknown name; weights that do not exist; features without labels; labels that nobody knows or that
            are not as many as the outputs; preprocessing that a card cannot describe.
        ArtefactError: the file of the weights cannot be read.
    """
    _check_names(name, weights)
    config = _pretrained_config(name)
    carried = normalisation = None
    if weights == "pretrained":
        outputs = _published_outputs(name, config)
    else:
        network = build(name, classes=_IMAGENET, channels=3, arguments=arguments)
        outputs, inside = classifier_outputs(network, weights)
        carried = inside.labels if inside.labels and len(inside.labels) == outputs else None
        normalisation = inside.normalisation
    if labels is None and carried is not None and carried not in imagenet_names(outputs):
        label_set, found = split_place(weights)[0].stem, carried
    else:
        label_set, found = _labels(name, outputs, labels)
    spec = _input(name, config, size, arguments)
    return ImportPlan(
        architecture=name,
        arguments=dict(arguments or {}),
        weights=weights,
        label_set=label_set,
        labels=found,
        input=normalised(spec, *normalisation) if normalisation else spec,
    )


def import_network(
    name: str,
    target: Path,
    *,
    weights: str = "pretrained",
    labels: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    size: Size | None = None,
) -> Card:
    """Make an artefact of a pretrained network as it is; arguments as :func:`plan_import`.

    Args:
        name: an architecture.
        target: the checkpoint to write; the folder's name becomes the artefact's.
        weights: see :func:`plan_import`, as the following.
        labels: a file.
        arguments: of the architecture.
        size: of the input.

    Returns:
        The card as written, or of what is there if it is the same import.

    Raises:
        UsageError: see :func:`plan_import`; or the folder has another artefact, which stays.
        ArtefactError: the weights cannot be had, do not fit, or make the network answer with what is no number.
    """
    begin = time.perf_counter()
    plan = plan_import(name, weights=weights, labels=labels, arguments=arguments, size=size)
    config = {
        "architecture": name,
        "arguments": dict(plan.arguments),
        "weights": weights_digest(weights),
        "labels": sha256_file(labels) if labels else plan.label_set,
        "size": size,
    }
    if (there := already_imported(target, config)) is not None:
        return there
    network = build(name, classes=len(plan.labels), channels=plan.input.channels, arguments=arguments)
    source = load_weights(network, name, weights, arguments=arguments)
    check_size(network, name, plan.input)
    macs = count_macs(network, plan.input)
    with torch.inference_mode():
        if not network.eval()(torch.zeros(1, *plan.input.shape)).isfinite().all():
            raise ArtefactError(f"{name} answers with what is no number: the weights of {source.source} are broken")
    entry = LineageEntry(
        stage="import",
        config=config,
        parent=None,
        commit=code_commit(),
        summary={"label_set": plan.label_set, "classes": len(plan.labels)},
        seconds=round(time.perf_counter() - begin, 1),
    )
    card = Card(
        name=target.parent.resolve().name,
        build=Build(architecture=name, arguments=plan.arguments),
        use=Use(labels=plan.labels, input=plan.input),
        inform=Inform(parameters=0, bytes=0, macs=macs, source=source.source, licence=source.licence),
        lineage=(entry,),
    )
    return save(network, card, target)


def _check_names(name: str, weights: str) -> None:
    if name.split(".")[0] not in (known := names()):
        if Path(name).suffix.lower() in _FILES or Path(name).exists():
            raise UsageError(
                f"{name} is a file or folder; name the architecture of the network, like resnet50, and its state dict "
                "with --weights FILE (an ONNX file without a card says neither its labels nor its preprocessing)"
            )
        raise unknown_name("model", name, known)
    if weights == "none":
        raise UsageError("--weights none: a network with random weights has learnt nothing that could be imported")


def _pretrained_config(name: str) -> Any:
    """What timm has published about an architecture and its weights; None for networks of others."""
    if not timm.is_model(name):
        return None
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:
        tags = [known.split(".", 1)[1] for known in timm.list_pretrained(f"{name.split('.')[0]}.*") if "." in known]
        raise unknown_name(f"tag of {name.split('.')[0]}", name.split(".", 1)[1], tags) from None


def _published_outputs(name: str, config: Any) -> int:
    """Number of outputs of the pretrained classifier."""
    base = name.split(".")[0]
    if base in TORCHVISION:
        return _IMAGENET
    if config is None or not config.has_weights:
        raise UsageError(
            f"there are no pretrained weights for {name}; `pocketzoo models --pretrained` lists what has some, "
            "and --weights FILE takes your own"
        )
    if config.num_classes:
        return int(config.num_classes)
    tags = timm.list_pretrained(f"{base}.*")
    others = [known for known in tags if imagenet_subset(timm.get_pretrained_cfg(known).num_classes)]
    raise UsageError(
        f"{name} was pretrained to make features, it has no labels: "
        + (f"choose {', '.join(others[:3])}, or " if others else "")
        + f"train it on data of yours (pocketzoo train --model {base} --weights pretrained --data FOLDER)"
    )


def _labels(name: str, outputs: int, path: Path | None) -> tuple[str, tuple[str, ...]]:
    """The label set's name and the labels."""
    if path is not None:
        labels = read_labels(path)
        if len(labels) != outputs:
            raise UsageError(
                f"--labels {path}: expected {outputs} labels, one for each output of {name}, got {len(labels)}"
            )
        return path.stem, labels
    subset = imagenet_subset(outputs)
    if subset is None:
        raise UsageError(
            f"{name} has {outputs} outputs, which is no edition of ImageNet (1,000 for imagenet-1k, 11,821 for "
            "imagenet-12k, 21,843 for imagenet-21k); name what they mean: --labels FILE with one label per line"
        )
    return subset, imagenet_labels(subset)


def _input(name: str, config: Any, size: Size | None, arguments: Mapping[str, Any] | None) -> Input:
    """The preprocessing that the network was evaluated with by those who trained it."""
    if config is None and name not in TORCHVISION:
        raise UsageError(
            f"nobody has published what images {name} was trained with, so it cannot be imported as it is; "
            f"train it: pocketzoo train --model {name} --data FOLDER"
        )
    squash = config is not None and config.crop_mode == "squash"
    if config is not None and (config.crop_mode == "border" or (squash and config.crop_pct != 1)):
        raise UsageError(
            f"{name} was evaluated on images that were resized with crop_mode={config.crop_mode!r}, "
            f"crop_pct={config.crop_pct:g} (timm.data), which the preprocessing here cannot do; "
            f"choose other weights: pocketzoo models '{name.split('.')[0]}*' --pretrained"
        )
    # "squash" stretches the whole image to the input, which is how small images are treated here.
    return input_for(name, colour="RGB", size=size, photographs=not squash, arguments=arguments)


def already_imported(target: Path, config: Mapping[str, Any]) -> Card | None:
    """The card at `target` if it is this very import; None if nothing is there.

    Raises:
        UsageError: something else is there.
    """
    card = card_if_readable(read_card, target)
    if card is not None and is_current(card, [("import", config)], None):
        return card
    others = [name for name in (CHECKPOINT, UNMERGED, GRAPH, INT8_GRAPH) if target.with_name(name).exists()]
    if others:
        raise occupied(target.parent, card, others[0])
    return None
