"""Files of weights that others wrote, read without executing anything."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from zoo.base.errors import ArtefactError

__all__ = ["Content", "attributes", "read_content"]

_CONFIGURED = frozenset({"model.safetensors", "pytorch_model.bin"})
"""Files that Hugging Face's libraries write a config.json beside."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a file holds."""

    items: Mapping[Any, Any]
    metadata: Mapping[str, Any]
    """The header of a safetensors file, or Hugging Face's config.json beside it."""
    classes: tuple[str, ...] = ()
    """Names of the Python classes in the file; placeholders stand in their places."""


def read_content(path: Path) -> Content:
    """Read a safetensors file or what torch.save wrote.

    Objects of Python classes (an argparse.Namespace, OmegaConf's, NumPy's scalars) become placeholders, which keep the
    attributes and items and have nothing that could be run.

    Raises:
        ArtefactError: missing, or neither kind of file.
    """
    if path.is_dir():
        raise ArtefactError(f"{path} is a folder; expected the file of the weights, like {path / 'model.safetensors'}")
    if not path.is_file():
        raise ArtefactError(f"no weights at {path}; expected `none`, `pretrained` or the path of a state dict")
    with path.open("rb") as stream:
        start = stream.read(9)
    try:
        # Eight bytes for the header's length, then its JSON: https://github.com/huggingface/safetensors#format
        found = _safetensors(path) if start[8:] == b"{" else _pickled(path)
    except Exception as error:  # safetensors, zipfile, unpickling and file-system errors of several libraries
        raise ArtefactError(
            f"{path}: not a state dict that can be read without executing code: {_reason(error, path)}; expected "
            "tensors by name: safetensors.torch.save_file(model.state_dict(), FILE) writes them, where you trust it"
        ) from error
    return found


def attributes(value: Any) -> Mapping[Any, Any]:
    """Items of a dictionary, or attributes and items of a placeholder; empty for what has none."""
    return {**getattr(value, "__dict__", {}), **value} if isinstance(value, Mapping) else {}


class _Fields:
    """Stands for a class; an instance is a Counter, whose items and attributes torch's unpickler fills in."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return Counter()


class _Items:
    """Stands for a class of sequences."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


class _Opaque:
    """Stands for a class whose state is neither attributes nor items, and is dropped."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


def _placeholder(name: str) -> type:
    if name == "collections.deque":
        return _Items
    return _Opaque if name == "functools.partial" or name.startswith("numpy.") else _Fields


def _pickled(path: Path) -> Content:
    """What torch.save wrote, by torch's unpickler, which calls what it is allowed to only: placeholders are."""
    names: list[str] = []
    if zipfile.is_zipfile(path):
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    while True:
        inert = [(_placeholder(name), name) for name in names]
        try:
            # Given a path, torch judges by its suffix.
            with path.open("rb") as stream, warnings.catch_warnings(), torch.serialization.safe_globals(inert):  # type: ignore[arg-type]
                warnings.simplefilter("ignore")
                items = torch.load(stream, map_location="cpu", weights_only=True)
            break
        except pickle.UnpicklingError as error:
            # Files from before torch 1.6 have no list of their classes: each is met in its turn.
            unknown = re.search(r"Unsupported global: GLOBAL (\S+) was", str(error))
            name = unknown[1] if unknown and "." in unknown[1] else f"builtins.{unknown[1]}" if unknown else ""
            if not name or name in names or zipfile.is_zipfile(path):
                raise
            names.append(name)
    items = items if isinstance(items, Mapping) else {}
    return Content(items=items, metadata=_configuration(path), classes=tuple(names))


def _safetensors(path: Path) -> Content:
    with safe_open(path, "pt") as stream:
        metadata = stream.metadata() or {}
        items = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no dictionary)
    return Content(items=items, metadata=_configuration(path) | metadata)


def _configuration(path: Path) -> dict[str, Any]:
    beside = path.with_name("config.json")
    if path.name not in _CONFIGURED or not beside.is_file():
        return {}
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the labels may be in it, the weights are not
        return {}
    return found if isinstance(found, dict) else {}


def _reason(error: Exception, path: Path) -> str:
    """Why a file was refused, without the advice of torch to trust it."""
    text = str(error)
    if found := re.search(r"(?:unsupported GLOBAL|Unsupported global: GLOBAL) (\S+)", text):
        return f"it holds Python objects ({found[1]})"
    if "call reduce for" in text or "create new object" in text:
        return "it holds objects that only code of its own could make"
    if "torchscript" in text.lower():
        return "it is a TorchScript archive, a program with its weights"
    if "Unsupported operand" in text and zipfile.is_zipfile(path):
        return "it was written with another pickle protocol than torch.save's own, 2"
    # What pickle and zipfile stumble over (a key, a byte) means nothing to who reads it.
    stumbled = isinstance(error, AttributeError | LookupError | EOFError | pickle.UnpicklingError | zipfile.BadZipFile)
    if stumbled or not text or "Weights only load failed" in text or isinstance(error, SafetensorError):
        return "it is neither a safetensors file nor a state dict of torch.save"
    return text
