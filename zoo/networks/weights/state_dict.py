"""The network inside a file of weights: which of its dictionaries of tensors, under which prefix, for which labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.artefact.card import KEY, Card, from_json
from zoo.base.errors import ArtefactError, CardError, unknown_name
from zoo.networks.weights.foreign import Content, attributes, read_content

__all__ = ["Found", "read_state_dict", "split_place"]

Shapes = Mapping[str, torch.Size]

_WRAPPERS = frozenset({"backbone", "ema", "ema_model", "encoder", "model", "module", "net", "network"})
"""What training code puts before all names, where nothing else tells the prefix."""
_INSIDE = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put anywhere in a name."""
_AVERAGED = frozenset({"averaged", "avg", "ema", "shadow", "swa", "teacher"})
_NO_NETWORK = ("amp", "callback", "criterion", "loop", "optim", "rng", "scaler", "sched")
_LISTS = frozenset({"categories", "class_names", "classes", "label_names", "labels", "names"})
_BY_NUMBER = frozenset({"id2label", "idx_to_class"})
_BY_LABEL = frozenset({"class_to_idx", "label2id"})


@dataclass(frozen=True, kw_only=True)
class Found:
    """A network's tensors in a file."""

    place: str
    """Keys and prefix that lead to it, with dots; "" where the file is nothing else."""
    tensors: dict[str, torch.Tensor]
    """By the network's own names, as far as the file has them."""
    labels: tuple[str, ...] | None
    """What the classifier's outputs mean, where the file says it."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
    """Mean and standard deviation per colour of what it was trained with, where the file says it."""
    notes: tuple[str, ...]
    """What else the file holds and was left out."""


@dataclass(frozen=True)
class _Place:
    """A prefix in a dictionary of tensors."""

    keys: str
    prefix: str
    tensors: dict[str, torch.Tensor]

    @property
    def name(self) -> str:
        return ".".join(part for part in (self.keys, self.prefix) if part)


def split_place(weights: str) -> tuple[Path, str]:
    """The path and the place of `FILE#PLACE`; a file whose name has a # is meant where there is one."""
    path, mark, place = weights.rpartition("#")
    return (Path(path), place) if mark and not Path(weights).is_file() else (Path(weights), "")


def read_state_dict(weights: str, own: Shapes) -> Found:
    """Find a network in a file.

    Where several fit, the averaged one is taken, as timm does, and a note says how to take another.

    Args:
        weights: the path of a safetensors file or of what torch.save wrote; `FILE#PLACE` takes the network at that
            place, like `last.ckpt#state_dict`.
        own: name -> shape of the tensors of the network that is to be loaded, which tell where it is.

    Raises:
        ArtefactError: the file cannot be read, has no tensors by name, or nothing at that place.
    """
    path, wanted = split_place(weights)
    content = read_content(path)
    dictionaries = dict(_dictionaries(content.items))
    if not dictionaries:
        held = f", and Python objects ({content.classes[0]}) that are not run" if content.classes else ""
        raise ArtefactError(
            f"{path}: expected a dictionary of tensors, found the keys {list(map(str, content.items))[:3]}{held}; "
            "torch.save(model.state_dict(), FILE) writes one"
        )
    found = _places(dictionaries, own) or _unprefixed(dictionaries)
    found.sort(key=_preference)
    chosen = [place for place in found if not wanted or f"{place.name}.".startswith(f"{wanted}.")]
    if not chosen:
        names = [place.name for place in found if place.name]
        raise ArtefactError(f"{path}: {unknown_name('network in the file', wanted, names)}")
    notes = [] if wanted else _others(path, chosen)
    notes += _left_out(path, found, dictionaries)
    card = _card(content)
    return Found(
        place=chosen[0].name,
        tensors=chosen[0].tensors,
        labels=card.use.labels if card else _labels(content),
        normalisation=(card.use.input.mean, card.use.input.std) if card else _normalisation(content),
        notes=tuple(notes),
    )


def _dictionaries(items: Mapping[Any, Any]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Every dictionary of tensors by name in a file, by the keys that lead to it."""
    waiting, seen = [("", items)], set()
    while waiting:
        place, current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        tensors = {_INSIDE.sub("", key): t for key, t in current.items() if isinstance(key, str) and _is_tensor(t)}
        if tensors:
            yield place, tensors
        waiting += [
            (f"{place}.{key}" if place else key, value)
            for key, value in current.items()
            if isinstance(value, Mapping) and isinstance(key, str) and not key.lower().startswith(_NO_NETWORK)
        ]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _places(dictionaries: Mapping[str, dict[str, torch.Tensor]], own: Shapes) -> list[_Place]:
    """Where at least half of the network's tensors are found by name and shape."""
    found = []
    for keys, tensors in dictionaries.items():
        counts = Counter(prefix for name, tensor in tensors.items() for prefix in _prefixes(name, tensor.shape, own))
        for prefix, count in counts.items():
            if 2 * count >= len(own):
                start = f"{prefix}." if prefix else ""
                inside = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
                found.append(_Place(keys, prefix, inside))
    return found


def _prefixes(name: str, shape: torch.Size, own: Shapes) -> Iterator[str]:
    """What stands before one of the network's names."""
    parts = name.split(".")
    for count in range(len(parts)):
        if own.get(".".join(parts[count:])) == shape:
            yield ".".join(parts[:count])


def _unprefixed(dictionaries: Mapping[str, dict[str, torch.Tensor]]) -> list[_Place]:
    """The large dictionaries, without what is before all of their names: for another network, or older names."""
    most = max(map(len, dictionaries.values()))
    found = []
    for keys, tensors in dictionaries.items():
        if 2 * len(tensors) < most:
            continue
        prefix: list[str] = []
        while len(heads := {name.split(".")[0] for name in tensors}) == 1 and heads <= _WRAPPERS:
            prefix += heads
            tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
        found.append(_Place(keys, ".".join(prefix), tensors))
    return found


def _preference(place: _Place) -> tuple[bool, int]:
    """The averaged first, then as timm.models.load_state_dict has it."""
    averaged = bool(_AVERAGED & set(re.split(r"[._-]", place.name.lower())))
    usual = ("state_dict", "model")
    return not averaged, usual.index(place.keys) if place.keys in usual else len(usual)


def _others(path: Path, found: Sequence[_Place]) -> list[str]:
    if len(found) < 2:
        return []
    names = [place.name or "the outermost" for place in found]
    return [f"{path} holds {len(found)} networks: {names[0]} is taken; --weights {path}#{names[1]} takes the other"]


def _left_out(path: Path, found: Sequence[_Place], dictionaries: Mapping[str, dict[str, torch.Tensor]]) -> list[str]:
    everything = [".".join(filter(None, (keys, name))) for keys, tensors in dictionaries.items() for name in tensors]
    starts = tuple(f"{place.name}." if place.name else "" for place in found)
    rest = [name for name in everything if not name.startswith(starts)]
    if not rest:
        return []
    return [f"{path}: {len(rest)} tensor(s) beside the network are left out: {', '.join(rest[:3])}"]


def _card(content: Content) -> Card | None:
    try:
        return from_json(content.metadata[KEY], where="") if KEY in content.metadata else None
    except CardError:  # of another version: its weights are read, what they are for is unknown
        return None


def _normalisation(content: Content) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """As timm writes it into Hugging Face's config.json."""
    config = attributes(content.metadata.get("pretrained_cfg"))
    mean, std = config.get("mean"), config.get("std")
    if not (isinstance(mean, list) and isinstance(std, list) and 0 < len(mean) == len(std)):
        return None
    if not all(isinstance(value, float | int) for value in (*mean, *std)) or min(std) <= 0:
        return None
    return tuple(map(float, mean)), tuple(map(float, std))


def _labels(content: Content) -> tuple[str, ...] | None:
    """A list of labels under one of its usual names."""
    outer = [content.metadata, attributes(content.items)]
    inner = [attributes(value) for items in outer for value in items.values()]
    for items in [*outer, *inner]:
        for key, value in items.items():
            if isinstance(key, str) and (labels := _listed(key, value)):
                return labels
    return None


def _listed(key: str, value: Any) -> tuple[str, ...] | None:
    if key in _LISTS and isinstance(value, list | tuple):
        found = list(value)
    elif isinstance(value, Mapping) and key in _LISTS | _BY_NUMBER | _BY_LABEL:
        pairs = [(label, number) for number, label in value.items()] if key not in _BY_LABEL else list(value.items())
        places = {str(number): label for label, number in pairs}
        found = [places.get(str(number)) for number in range(len(places))]
    else:
        return None
    return tuple(found) if found and all(isinstance(label, str) for label in found) else None
