"""Checkpoints: safetensors files with the card in the header. Reading one executes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from zoo.artefact.card import KEY, Card, from_json, to_json
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import write_atomically
from zoo.networks.cutting.truncate import truncate
from zoo.networks.heads import add_head
from zoo.networks.lora import add_card_lora
from zoo.networks.registry import build, classifier_width
from zoo.networks.shrink import attentions, drop_blocks, shrink

__all__ = ["heads_of", "load", "read_card", "rebuild", "save"]


def read_card(path: Path) -> Card:
    """The card in a checkpoint's header.

    Raises:
        ArtefactError: missing, or not a safetensors file.
        CardError: no card, or a malformed one.
    """
    return _read(path, tensors=False)[0]


def load(path: Path) -> tuple[nn.Module, Card]:
    """Rebuild the network of a checkpoint, in evaluation mode on the CPU.

    The architecture is built by name, loses the blocks that the card calls dropped, is shrunk to the shapes in the
    header where the file holds a pruned network, and loaded strictly.

    Raises:
        ArtefactError: missing, not a safetensors file, or tensors that do not fit the architecture.
        CardError: no card, or one that contradicts the tensors.
    """
    card, tensors = _read(path, tensors=True)
    try:
        model = rebuild(card)
    except (UsageError, ArtefactError) as error:
        raise ArtefactError(f"{path}: {error}") from error
    if card.build.lora is not None:
        add_card_lora(model, card.build.lora)
    shrink(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, card.build.heads)
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ArtefactError(f"{path}: its tensors do not fit {card.build.architecture}: {error}") from error
    width = classifier_width(model)
    if width != len(card.use.labels):
        raise ArtefactError(f"{path}: the card has {len(card.use.labels)} labels, the classifier {width} outputs")
    return model.eval(), card


def rebuild(card: Card) -> nn.Module:
    """The network that a card describes, with random weights, whole widths and no adapters, without dropped blocks.

    Raises:
        ArtefactError: it has no block of the name of one that was dropped.
        UsageError: the architecture, its arguments, its layer or its head do not exist.
    """
    classes = len(card.use.labels)
    model = build(
        card.build.architecture, classes=classes, channels=card.use.input.channels, arguments=card.build.arguments
    )
    if card.build.layer:
        model = truncate(model, card.build.layer, classes)
    if card.build.head is not None:
        add_head(model, card.build.head, classes)
    drop_blocks(model, card.build.dropped)
    return model


def save(model: nn.Module, card: Card, path: Path) -> Card:
    """Write a network and its card atomically.

    Returns:
        The card as written: `inform.bytes` and `inform.parameters` are taken from the tensors.

    Raises:
        CardError: the card is not JSON.
        ArtefactError: the card's labels and the classifier's outputs differ in number.
    """
    width = classifier_width(model)
    if width != len(card.use.labels):
        raise ArtefactError(f"{path}: {len(card.use.labels)} labels for a classifier of {width} outputs")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    card = dataclasses.replace(
        card,
        inform=dataclasses.replace(
            card.inform,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        ),
    )
    header = {KEY: to_json(card)}
    # Tied tensors would be refused by safetensors as sharing memory; clones are what a strict load expects anyway.
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors.values()]
    if len(set(storages)) < len(storages):
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))
    return card


def heads_of(model: nn.Module) -> dict[str, int]:
    """Attention module name -> number of heads."""
    return {name: int(module.num_heads) for name, module in attentions(model).items()}  # type: ignore[arg-type]


def _read(path: Path, *, tensors: bool) -> tuple[Card, dict[str, torch.Tensor]]:
    if not path.is_file():
        raise ArtefactError(f"no checkpoint at {path}; `pocketzoo train` writes one")
    try:
        with safe_open(path, "pt") as stream:
            metadata = stream.metadata() or {}
            names = stream.keys() if tensors else []
            found = {name: stream.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ArtefactError(
            f"{path}: not a safetensors file ({error}); pickled checkpoints are not read, "
            "give their weights to `pocketzoo train --weights FILE`"
        ) from error
    return from_json(metadata.get(KEY), where=str(path)), found
