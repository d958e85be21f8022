"""Networks by name: our own small ones, and every name that timm knows."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo.networks.own.cnn5
import zoo.networks.own.lenet  # noqa: F401 (both fill OWN)
from zoo.artefact.card import Input, Resize
from zoo.base.errors import UsageError, unknown_name
from zoo.base.size import Size, height_and_width
from zoo.networks.own.classic import TORCHVISION
from zoo.networks.own.table import OWN

__all__ = [
    "as_keywords",
    "build",
    "classifier",
    "classifier_names",
    "classifier_width",
    "count_macs",
    "counting",
    "empty_input",
    "evaluating",
    "input_channels",
    "input_for",
    "last_layers",
    "names",
    "normalised",
    "search",
    "zero_classifier",
]

_FILE_ARGUMENTS = frozenset({"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"})
"""What timm's create_model would read or download: a card that asks for it must not be obeyed."""


_REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
"""What constructors raise for arguments of a wrong kind or size: few check them, most stumble over them."""


def names() -> list[str]:
    """Every name that :func:`build` accepts."""
    return sorted([*OWN, *timm.list_models()])


def search(pattern: str | None = None, *, pretrained: bool = False) -> list[str]:
    """The names that match a pattern, our own first.

    Args:
        pattern: with `*` and `?`, or a part of the name; None: all.
        pretrained: only those that somebody has pretrained weights for.

    Raises:
        UsageError: there is none; lists close ones.
    """
    wanted = "*" if pattern is None else pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    own = [name for name in sorted(OWN) if not pretrained or name in TORCHVISION]
    theirs = timm.list_pretrained() if pretrained else timm.list_models()
    known = [*own, *dict.fromkeys(name.split(".")[0] for name in theirs)]
    found = [name for name in known if fnmatch.fnmatchcase(name, wanted)]
    if not found:
        raise unknown_name("model", str(pattern), known)
    return found


def build(architecture: str, *, classes: int, channels: int, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """A network with random weights that maps float32 [B, channels, H, W] to logits [B, classes].

    Raises:
        UsageError: unknown name (with close matches), or arguments the architecture does not take.
    """
    if files := sorted(_FILE_ARGUMENTS & set(arguments or {})):
        raise UsageError(f"{files[0]!r} is no argument of an architecture; weights are given with --weights")
    known = names()
    base = architecture.split(".")[0]
    if base not in known:
        raise unknown_name("model", architecture, known)
    try:
        if base in OWN:
            model = OWN[base](classes=classes, channels=channels, **(arguments or {}))
        else:
            model = timm.create_model(
                architecture, pretrained=False, num_classes=classes, in_chans=channels, **as_keywords(arguments or {})
            )
    except _REFUSALS as error:
        reason = str(error) or type(error).__name__
        raise UsageError(f"cannot build {architecture} with the arguments {dict(arguments or {})}: {reason}") from error
    if not _has_classifier(model, classes):
        raise UsageError(
            f"{architecture} has no classifier that a set of {classes} labels could be given to (`get_classifier`); "
            "it makes features only: choose another architecture (pocketzoo models PATTERN)"
        )
    model.image_channels = channels  # type: ignore[assignment]
    return model


def _has_classifier(model: nn.Module, classes: int) -> bool:
    try:
        return classifier_width(model) == classes
    except (UsageError, KeyError, TypeError):  # none, not part of the network, or one that wants to be asked otherwise
        return False


def as_keywords(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a card or recipe as timm takes them."""
    # Cards and recipes are JSON and TOML, which know lists only; timm compares some arguments with tuples.
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}


def classifier(model: nn.Module) -> nn.Module:
    """The layer(s) that turn features into logits; what a new set of labels replaces.

    A network with several heads, whose answers it averages (a distilled DeiT), has a module list of them.
    """
    find = getattr(model, "get_classifier", None)
    head = find() if find else None
    if isinstance(head, nn.Module) and isinstance(getattr(head, "head_dist", None), nn.Module):
        head = (head.head, head.head_dist)  # RepViT keeps both heads in one module
    if isinstance(head, nn.Module) and isinstance(getattr(model, "aux_head", None), nn.Module):
        head = (head, model.aux_head)  # VOLO adds half of what it answers for the best patch
    if isinstance(head, tuple | list) and all(isinstance(part, nn.Module) for part in head):
        return nn.ModuleList(head)
    if not isinstance(head, nn.Module):
        raise UsageError(f"{type(model).__name__} has no classifier module (`get_classifier`)")
    return head


def classifier_names(model: nn.Module) -> list[str]:
    """The names of the classifier's modules in the network: one per head."""
    head = classifier(model)
    heads = list(head) if isinstance(head, nn.ModuleList) else [head]
    names = {module: name for name, module in model.named_modules()}
    return [names[part] for part in heads]


def last_layers(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The last linear layer (or 1 x 1 convolution) of each head of the classifier."""
    heads = [model.get_submodule(name) for name in classifier_names(model)]
    layers = [[part for part in head.modules() if isinstance(part, nn.Linear | nn.Conv2d)] for head in heads]
    return [found[-1] for found in layers if found]


def zero_classifier(model: nn.Module) -> None:
    """Set the classifier's last layer to zero: every label equally probable, whatever the features.

    A random one would send its noise into pretrained weights at the first steps; the scale that timm draws some heads
    with grows as the labels get fewer. Zero is how Google fine-tunes (big_vision's configs/transfer.py).
    """
    for last in last_layers(model):
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)


def classifier_width(model: nn.Module) -> int | None:
    """Number of outputs of the classifier's last layer."""
    layers = last_layers(model)
    return layers[-1].weight.shape[0] if layers else None


def input_channels(model: nn.Module) -> int:
    """Number of colours of the images that a network takes."""
    # Not always those of its first convolution: some fold pixels or frequencies into channels before it.
    known = getattr(model, "image_channels", None)
    if isinstance(known, int):
        return known
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise UsageError(f"{type(model).__name__} has no convolution, so its number of colours cannot be read from it")


def input_for(
    architecture: str,
    *,
    colour: str,
    size: Size | None,
    photographs: bool,
    arguments: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> Input:
    """The preprocessing that suits an architecture: timm's data configuration where it has one.

    Args:
        architecture: a registered name.
        colour: "RGB" or "L".
        size: None: the argument `img_size`, else what the network was pretrained with or made for.
        photographs: resize the shorter edge and crop the centre, as in pretraining; else stretch the whole image
            to the input, which keeps all of a small one.
        arguments: what the network is built with beyond its name.
        pretrained: the weights come from somewhere, so that grey images are normalised by the mean over the three
            colours of what they were trained with; random ones take them from -1 to 1.
    """
    channels = {"RGB": 3, "L": 1}[colour]
    config = timm.get_pretrained_cfg(architecture, allow_unregistered=True) if timm.is_model(architecture) else None
    own = _OWN_INPUTS.get(architecture, _OwnInput())
    mean, std = (config.mean, config.std) if config else (own.mean, own.std)
    if channels == 1:
        mean, std = ((sum(values) / len(values) if pretrained else 0.5,) for values in (mean, std))
    height, width = height_and_width(
        size or _as_size((arguments or {}).get("img_size")) or (config.input_size[-1] if config else own.size)
    )
    kernel = config.interpolation if config and config.interpolation in ("bilinear", "bicubic") else "bilinear"
    if photographs:
        # timm rounds the resized edge down: timm.data.transforms_factory.transforms_imagenet_eval
        crop_pct = (config.crop_pct if config else None) or 0.875
        # What is not square keeps its aspect ratio: timm's ResizeKeepRatio, which rounds both edges down.
        rule = "shorter" if height == width else "cover"
        resize = Resize(rule=rule, edge=int(min(height, width) / crop_pct), filter=kernel)
    else:
        resize = Resize(rule="stretch", filter=kernel)
    return Input(
        colour=colour,
        size=(height, width),
        resize=resize,
        crop="centre" if photographs else "none",
        mean=tuple(mean),
        std=tuple(std),
    )


def _as_size(asked: object) -> Size | None:
    """An architecture's argument `img_size`, if it is one."""
    if isinstance(asked, list | tuple) and len(asked) == 2 and all(isinstance(edge, int) for edge in asked):
        return asked[0], asked[1]
    return asked if isinstance(asked, int) else None


@dataclass(frozen=True, kw_only=True)
class _OwnInput:
    """What a network of our own takes unless told otherwise."""

    size: int = 28
    """Edge in pixels."""
    mean: tuple[float, ...] = (0.5,) * 3
    std: tuple[float, ...] = (0.5,) * 3


_OWN_INPUTS: Mapping[str, _OwnInput] = {
    "alexnet": _OwnInput(size=224, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD),
    "cnn5": _OwnInput(size=64),
    # Its weights come from TensorFlow, which normalised like this; torchvision converts inside the network.
    "googlenet": _OwnInput(size=224),
}


def normalised(spec: Input, mean: Sequence[float], std: Sequence[float]) -> Input:
    """The input with another mean and standard deviation per colour; for another number of colours their average."""
    mean, std = (
        values if len(values) == spec.channels else [sum(values) / len(values)] * spec.channels
        for values in (mean, std)
    )
    return dataclasses.replace(spec, mean=tuple(mean), std=tuple(std))


def count_macs(model: nn.Module, spec: Input | Sequence[int]) -> int:
    """Multiply-accumulates of one example, counted by torch (convolutions, matrix products, attention).

    Args:
        model: stays as it is.
        spec: its input, or the shape of one without the batch.
    """
    with counting(model) as counter:
        model(empty_input(model, spec))
    return int(counter.get_total_flops()) // 2


@contextmanager
def counting(model: nn.Module) -> Iterator[FlopCounterMode]:
    """Count the operations of what is computed meanwhile, two for a multiply-accumulate, in evaluation mode.

    Args:
        model: gets its modes and its wish for gradients back.
    """
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            # torch 2.15's counter fails on a view of a parameter that wants gradients (CaiT's class token).
            parameter.requires_grad_(False)
        with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode meanwhile; afterwards every module has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def empty_input(model: nn.Module, spec: Input | Sequence[int]) -> torch.Tensor:
    """Zeros [1, C, H, W] of the kind of the model's weights, on their device; `spec`: see :func:`count_macs`."""
    like = next(model.parameters())
    shape = spec.shape if isinstance(spec, Input) else spec
    return torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
