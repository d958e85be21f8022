"""Tensors by name into a network: for its colours, its shapes and its labels, or a sentence about what does not fit."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import timm
import torch
from torch import nn

from zoo.base.errors import ArtefactError
from zoo.base.progress import note
from zoo.networks.registry import classifier_names, input_channels, last_layers, zero_classifier
from zoo.networks.weights.state_dict import split_place

__all__ = ["adapt_colours", "load_tensors", "made_elsewhere", "misfits", "outputs", "weight_names"]

_LAYOUTS: Mapping[str, str] = {
    "Hugging Face's transformers": r"(^|\.)(embeddings\.patch_embeddings|embedder|encoder\.(layer|stages)\.\d+)\.",
    "torchvision's transformers": r"(^|\.)(conv_proj\.|encoder\.layers\.encoder_layer_\d+\.)",
    "Keras or Flax": r"(^|[./])kernel(:0)?$",
}
"""Who uses names like these -> what tells them from timm's."""


def adapt_colours(model: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The first convolution for as many colours as the network has, as timm does it; elsewhere as they are."""
    convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    colours = input_channels(model)
    # Where pixels are folded into channels first, timm knows what to do, see `_converted`.
    if not convolutions or convolutions[0][1].in_channels != colours:
        return tensors
    name = f"{convolutions[0][0]}.weight"
    found = tensors.get(name)
    if found is None or found.ndim != 4 or found.shape[1] == colours:
        return tensors
    base = () if found.shape[1] == 3 else (found.shape[1],)  # older timm knows 3 only: a TypeError
    with contextlib.suppress(NotImplementedError, TypeError):
        return tensors | {name: timm.models.adapt_input_conv(colours, found, *base)}
    return tensors


def weight_names(model: nn.Module) -> list[str]:
    """Names of the weights of the classifier's last layers, one per head."""
    layers = set(last_layers(model))
    return [f"{name}.weight" for name, module in model.named_modules() if module in layers]


def outputs(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> int:
    """Number of outputs of the classifier among some tensors; 0 where there is none."""
    widths = [tensors[key].shape[0] for key in weight_names(model) if key in tensors and tensors[key].ndim]
    return int(widths[-1]) if widths else 0


def _starts(model: nn.Module) -> tuple[str, ...]:
    """What the names of the classifier's tensors start with."""
    return tuple(f"{name}." for name in classifier_names(model))


def misfits(model: nn.Module, tensors: Mapping[str, torch.Tensor], *, fresh_head: bool) -> str:
    """What of some tensors does not fit a network, but for a classifier that is to be new anyway; "" if all fits."""
    own = model.state_dict()
    # torchvision's GoogLeNet was trained with two more classifiers, which no answer needs.
    new = ("aux1.", "aux2.", *(_starts(model) if fresh_head else ()))
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(new)}
    mismatched = [name for name, tensor in rest.items() if name in own and own[name].shape != tensor.shape]
    # Counters of steps are younger than BatchNorm, and change no answer.
    expected = [name for name in own if not name.startswith(new) and not name.endswith(".num_batches_tracked")]
    missing = [name for name in expected if name not in rest]
    surplus = [name for name in rest if name not in own]
    found = []
    if mismatched:
        near = min(mismatched, key=lambda name: abs(math.log((own[name].numel() + 1) / (rest[name].numel() + 1))))
        found = [
            f"{len(mismatched)} of other shapes (the closest: {near!r} is {list(rest[near].shape)}, expected "
            f"{list(own[near].shape)})"
        ]
    found += [f"{len(missing)} missing, like {missing[:3]}"] if missing else []
    found += [f"{len(surplus)} unknown, like {surplus[:3]}"] if surplus else []
    if not found:
        return ""
    return f"found {list(tensors)[:3]}, expected {list(own)[:3]}: {', '.join(found)}{made_elsewhere(tensors)}"


def made_elsewhere(names: Iterable[str]) -> str:
    """Whose names these are, if they are known to be no names of timm's."""
    for maker, pattern in _LAYOUTS.items():
        if any(re.search(pattern, name) for name in names):
            return (
                f"; these are the names of {maker}, which timm does not convert for this network: take the same "
                "weights in timm's names (huggingface.co/timm has most) or `--weights pretrained`"
            )
    return ""


def load_tensors(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    *,
    where: str,
    labels: Sequence[str] | None,
    known: Sequence[Sequence[str]],
) -> None:
    """Load tensors whose outputs mean one of the `known` lists (none: nobody says) into a network of `labels`."""
    if found := misfits(model, tensors, fresh_head=labels is not None):
        raise ArtefactError(f"the weights in {where} do not fit {type(model).__name__}: {found}")
    if labels is not None:
        tensors = _for_labels(model, tensors, where, labels, known)
    own = model.state_dict()
    keep = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    model.load_state_dict(keep, strict=False)
    if any(name not in keep for name in own if name.startswith(_starts(model))):
        zero_classifier(model)


def _for_labels(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    where: str,
    labels: Sequence[str],
    known: Sequence[Sequence[str]],
) -> dict[str, torch.Tensor]:
    """The tensors with a classifier for these labels in this order, or without one."""
    last = [name.removesuffix("weight") + part for name in weight_names(model) for part in ("weight", "bias")]
    width = outputs(model, tensors)
    for others in known:
        if width == len(others) == len(labels) and set(others) == set(labels):
            rows = torch.tensor([list(others).index(label) for label in labels])
            return {name: tensor[rows] if name in last else tensor for name, tensor in tensors.items()}
    theirs = [name for name in tensors if name.startswith(_starts(model))]
    if theirs and (width == len(labels) or split_place(where)[0].is_file()):
        meaning = f"for {', '.join(known[0][:3])}, ..." if known else "for labels that it does not name"
        form = f"of {width} outputs" if width else f"with {theirs[0]}"
        note(f"{where}: its classifier {form}, {meaning}, is replaced by a new one for your {len(labels)} labels")
    return {name: tensor for name, tensor in tensors.items() if name not in last}
