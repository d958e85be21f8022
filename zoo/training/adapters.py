"""Adapters in files of their own: kilobytes for each task beside one shared network.

Such a file holds the LoRA matrices, the classifier, buffers that training may have changed, and the card of the
unmerged network. It belongs to one set of frozen weights: their digest is in the file, and :func:`apply_adapter`
checks it. The digest is of the backbone's parameters alone, not of a checkpoint file: so it is the same whether
training started from an artefact or from downloaded weights, and whatever classifier and labels the base has, which
the adapter replaces.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from zoo.artefact.card import KEY, Card, from_json, to_json
from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT, UNMERGED, checkpoint_path, write_atomically
from zoo.data.dataset import Dataset
from zoo.networks.checkpoint import load
from zoo.networks.lora import LoraLinear, adapter_state
from zoo.networks.transplant import classifier_tensors
from zoo.training.stage import merge

__all__ = ["ADAPTER", "Adapter", "apply_adapter", "backbone_digest", "extract_adapter", "read_adapter", "write_adapter"]

ADAPTER = "adapter.safetensors"
_KEY = "zoo.adapter"
_SCHEMA = "zoo.adapter/1"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an adapter file says about its base, beside the card."""

    schema: str = _SCHEMA
    backbone: str
    """SHA-256 of the frozen weights it was trained beside; see :func:`backbone_digest`."""


def backbone_digest(model: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of every parameter that LoRA leaves frozen.

    These are all but the classifier's and the adapters'. A network has the same digest before adapters are added and
    while they are separate, not once they are merged.
    """
    wrapped = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    left_out = classifier_tensors(model) | {f"{name}.{key}" for name in wrapped for key in ("lora_a", "lora_b")}
    inner = {f"{name}.base.{key}": f"{name}.{key}" for name in wrapped for key in ("weight", "bias")}
    found = {inner.get(name, name): p for name, p in model.named_parameters() if name not in left_out}
    total = hashlib.sha256()
    for name in sorted(found):
        tensor = found[name].detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def write_adapter(model: nn.Module, card: Card, base_digest: str, path: Path) -> Adapter:
    """Write the adapters and the classifier of an unmerged network, atomically.

    Args:
        model: with separate adapters.
        card: of the unmerged checkpoint.
        base_digest: :func:`backbone_digest` of the network that was adapted, or of `model`: they are the same.
        path: the file.

    Raises:
        ArtefactError: the network or the card has no adapters.
    """
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in adapter_state(model).items()}
    if card.build.lora is None:
        raise ArtefactError(f"{card.name}: its card describes no LoRA adapters; extract them from {UNMERGED}")
    adapter = Adapter(backbone=base_digest)
    header = {KEY: to_json(card), _KEY: json.dumps(dataclasses.asdict(adapter), sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))
    return adapter


def extract_adapter(source: Path, path: Path | None = None) -> Path:
    """Write the adapters of an unmerged checkpoint into a file of their own.

    Args:
        source: the folder of an artefact that was trained with LoRA, or its lora.safetensors.
        path: default: adapter.safetensors beside it.

    Raises:
        ArtefactError: there is no unmerged checkpoint, or it has no adapters.
    """
    unmerged = source / UNMERGED if source.is_dir() else source
    if not unmerged.is_file():
        raise ArtefactError(
            f"no unmerged checkpoint at {unmerged}; a recipe with `lora` writes one, and merging cannot be undone"
        )
    model, card = load(unmerged)
    path = path or unmerged.with_name(ADAPTER)
    write_adapter(model, card, backbone_digest(model), path)
    return path


def read_adapter(path: Path) -> tuple[Adapter, Card, dict[str, torch.Tensor]]:
    """What an adapter file says about its base, its card and its tensors.

    Raises:
        ArtefactError: missing, or not an adapter file.
        CardError: its card is missing or malformed.
    """
    if not path.is_file():
        raise ArtefactError(f"no adapter at {path}; `pocketzoo adapter extract ARTEFACT` writes one")
    try:
        with safe_open(path, "pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{path}: not a safetensors file ({error})") from error
    if _KEY not in metadata:
        raise ArtefactError(
            f"{path}: no `{_KEY}` in its metadata, so it is no adapter file; `pocketzoo adapter extract` writes one"
        )
    try:
        adapter = to_dataclass(Adapter, json.loads(metadata[_KEY]), _KEY)
    except (ValueError, DocumentError) as error:
        raise ArtefactError(f"{path}: {error}") from error
    if adapter.schema != _SCHEMA:
        raise ArtefactError(f"{path}: its schema is {adapter.schema!r}, this version reads {_SCHEMA!r}")
    card = from_json(metadata.get(KEY), where=str(path))
    if card.build.lora is None:
        raise ArtefactError(f"{path}: its card describes no LoRA adapters")
    return adapter, card, tensors


def apply_adapter(
    base: Path, adapter: Path, target: Path, *, dataset: Dataset | None = None, force: bool = False
) -> Path:
    """Make from a base and an adapter what training made: lora.safetensors, and model.safetensors merged from it.

    The base's classifier is left out, so its labels may be others than the adapter's.

    Args:
        base: a checkpoint, or its folder.
        adapter: from :func:`write_adapter`.
        target: a folder.
        dataset: measures the merged network.
        force: merge even if the target is up to date.

    Returns:
        The merged checkpoint's path.

    Raises:
        ArtefactError: the base is not the one that was adapted: another architecture, shape or weights, named.
    """
    base = checkpoint_path(base)
    said, card, tensors = read_adapter(adapter)
    model, base_card = load(base)
    _check_base(base, model, base_card, adapter, card, tensors)
    if (found := backbone_digest(model)) != said.backbone:
        raise ArtefactError(
            f"{base} is not what {adapter} was trained beside: its frozen weights have the digest {found[:12]}, the "
            f"adapter wants {said.backbone[:12]} ({_origin(card)})"
        )
    left_out = classifier_tensors(model)
    frozen = {_wrapped(name, tensors): t for name, t in model.state_dict().items() if name not in left_out}
    whole = {name: tensor.contiguous().clone() for name, tensor in (frozen | tensors).items()}
    unmerged, merged = target / UNMERGED, target / CHECKPOINT
    if base.resolve() in (unmerged.resolve(), merged.resolve()):
        raise ArtefactError(f"{target} is the base itself; give another folder to --out")
    write_atomically(unmerged, lambda path: save_file(whole, path, metadata={KEY: to_json(card)}))
    return merge(unmerged, merged, dataset, force=force)


def _check_base(
    base: Path, model: nn.Module, base_card: Card, adapter: Path, card: Card, tensors: dict[str, torch.Tensor]
) -> None:
    if base_card.build.lora is not None:
        raise ArtefactError(f"{base} has adapters of its own that are not merged; run `pocketzoo merge` first")
    ours, theirs = card.build, base_card.build
    if ours.architecture != theirs.architecture:
        raise ArtefactError(
            f"{adapter} adapts {ours.architecture}, {base} is {theirs.architecture}; give the base of the adapter"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if part not in ("lora_a", "lora_b"):
            continue
        weight = shapes.get(f"{layer}.weight")
        if weight is None:
            raise ArtefactError(f"{adapter} adapts {layer}, which {base} does not have")
        # An adapter of thirds is [S, rank, in] and [S, out / 3, rank].
        have = weight[1] if part == "lora_a" else weight[0] // (3 if tensor.ndim == 3 else 1)
        want = tensor.shape[-1 if part == "lora_a" else -2]
        if have != want:
            raise ArtefactError(
                f"{adapter}: its {name} {tuple(tensor.shape)} does not fit {layer} of {base}, whose weight is {weight}"
            )


def _wrapped(name: str, tensors: dict[str, torch.Tensor]) -> str:
    """A base's tensor name in the unmerged network."""
    layer, _, part = name.rpartition(".")
    return f"{layer}.base.{part}" if f"{layer}.lora_a" in tensors else name


def _origin(card: Card) -> str:
    entry = next((entry for entry in reversed(card.lineage) if entry.stage == "train"), None)
    if entry is not None and entry.parent:
        return f"of the checkpoint with the SHA-256 {entry.parent[:12]}"
    return f"of {card.build.architecture} with the weights {card.inform.source or 'unknown'}"
