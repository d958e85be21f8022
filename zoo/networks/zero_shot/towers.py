"""open_clip's image towers as timm's networks, with a cosine head in the place of their projection.

Letters in shapes: K labels, F features that a tower pools, E features that images and texts share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from zoo.artefact.card import Head
from zoo.base.errors import ArtefactError, UsageError
from zoo.networks.heads import add_head
from zoo.networks.registry import as_keywords, build, classifier, classifier_names, last_layers

__all__ = ["Tower", "agreement", "check_tower", "timm_tower", "with_texts"]

_VIT_KEYS = frozenset({"head_width", "image_size", "layers", "mlp_ratio", "patch_dropout", "patch_size", "width"})
_RESNET_KEYS = frozenset({"head_width", "image_size", "layers", "patch_size", "width"})
_TOLERANCE = 1e-4
"""Of a cosine; rounding is some 1e-7."""


@dataclass(frozen=True, kw_only=True)
class Tower:
    """An image tower as a network of timm's."""

    network: nn.Module
    """Float32 [B, 3, H, W] to the embedding [B, E] where it has a projection; else its classifier is random."""
    architecture: str
    arguments: Mapping[str, Any]
    head: Head
    """The cosine head that goes in the classifier's place."""


def check_tower(name: str, config: Mapping[str, Any]) -> None:
    """Check by its configuration that a tower may have a counterpart in timm.

    Raises:
        UsageError: it has none; names the tower and what of it.
    """
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        if vision.get("timm_pool") in ("abs_attn", "rot_attn") or vision.get("timm_proj") == "mlp":
            what = "an MLP as its projection" if vision.get("timm_proj") == "mlp" else "a pooling of open_clip's"
            raise _refused(name, f"{vision['timm_model_name']} with {what}")
        if not timm.is_model(vision["timm_model_name"]):
            raise _refused(name, f"{vision['timm_model_name']}, which this version of timm does not have")
        return
    resnet = isinstance(vision.get("layers"), list | tuple)
    kind = "a ModifiedResNet" if resnet else "a VisionTransformer"
    if strange := sorted(set(vision) - (_RESNET_KEYS if resnet else _VIT_KEYS)):
        raise _refused(name, f"{kind} with {', '.join(f'{key}={vision[key]!r}' for key in strange)}")
    _counterpart(name, config)


def timm_tower(visual: nn.Module, name: str, config: Mapping[str, Any]) -> Tower:
    """The counterpart of a tower, with its weights.

    Args:
        visual: open_clip's image tower.
        name: open_clip's, for errors.
        config: what it was built from; :func:`check_tower` has passed it.

    Raises:
        ArtefactError: timm's network does not take the tower's weights.
    """
    vision, width = config["vision_cfg"], int(config["embed_dim"])
    projected = True
    if "timm_model_name" in vision:
        architecture, projected = str(vision["timm_model_name"]), vision.get("timm_proj") != "none"
        pool = vision.get("timm_pool", "avg")
        arguments: dict[str, Any] = {"global_pool": pool} if pool else {}
        network = _of_timm(visual, name, architecture, arguments, width)
    else:
        architecture, arguments = _counterpart(name, config)
        network = _converted(visual, name, architecture, arguments, width)
    head = Head(kind="cosine", hidden=width if projected else 0, dropout=0.0)
    return Tower(network=network, architecture=architecture, arguments=arguments, head=head)


def with_texts(tower: Tower, weight: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    """The tower's network with a classifier made of texts, changed in place: [B, 3, H, W] to logits [B, K].

    Args:
        tower: its projection, if it has one, becomes the head's.
        weight: [K, E], see zoo.networks.zero_shot.clip.Texts.classifier.
        bias: [K].
    """
    network = tower.network
    projection = classifier(network)
    head = add_head(network, tower.head, len(weight))
    with torch.no_grad():
        if tower.head.hidden:
            made = next(layer for layer in head.modules() if isinstance(layer, nn.Linear))
            made.weight.copy_(projection.weight)  # type: ignore[arg-type]
            nn.init.zeros_(made.bias)
            if projection.bias is not None:
                made.bias.copy_(projection.bias)  # type: ignore[arg-type]
        (last,) = last_layers(network)
        last.weight.copy_(weight)
        last.bias.copy_(bias)  # type: ignore[union-attr]
    return network.eval()


@torch.inference_mode()
def agreement(network: nn.Module, visual: nn.Module, name: str, size: tuple[int, int]) -> float:
    """Compare the cosines of two random images with the texts that two networks answer with.

    Args:
        network: of :func:`with_texts`.
        visual: open_clip's image tower.
        name: open_clip's, for errors.
        size: height and width of images in pixels.

    Returns:
        The largest difference of a cosine.

    Raises:
        ArtefactError: it is more than rounding, so the networks are not the same.
    """
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    (last,) = last_layers(network)
    wanted = last(nn.functional.normalize(visual.eval()(images), dim=-1))
    scale = last.weight.flatten(1).norm(dim=1).max()
    difference = float((network.eval()(images) - wanted).abs().max() / scale)
    if not difference <= _TOLERANCE:  # what is no number is none either
        raise ArtefactError(
            f"--clip {name}: timm's network answers otherwise than open_clip's image tower: a cosine differs by "
            f"{difference:.1e}, at most {_TOLERANCE:.0e} is rounding; it has no exact counterpart, or broken weights"
        )
    return difference


def _refused(name: str, tower: str) -> UsageError:
    return UsageError(
        f"--clip {name}: its image tower is {tower}, which has no exact counterpart among timm's networks"
    )


def _of_timm(visual: nn.Module, name: str, architecture: str, arguments: Mapping[str, Any], width: int) -> nn.Module:
    """A tower that is timm's network: built anew, the projection as its classifier."""
    network = build(architecture, classes=width, channels=3, arguments=arguments)
    starts = tuple(f"{head}." for head in classifier_names(network))
    tensors = visual.get_submodule("trunk").state_dict()
    own = classifier(network)
    if isinstance(projection := getattr(visual.get_submodule("head"), "proj", None), nn.Linear):
        missing = own.bias is not None and projection.bias is None
        bias = {"bias": torch.zeros(width)} if missing else {}
        tensors |= {f"{starts[0]}{key}": tensor for key, tensor in (projection.state_dict() | bias).items()}
    absent, surplus = network.load_state_dict(tensors, strict=False)
    if wrong := [key for key in absent if not key.startswith(starts)] + surplus:
        raise ArtefactError(f"--clip {name}: timm's {architecture} differs from the image tower at {wrong[:3]}")
    return network


def _converted(visual: nn.Module, name: str, architecture: str, arguments: Mapping[str, Any], width: int) -> nn.Module:
    """A tower of open_clip's own, which timm converts; the projection becomes the classifier."""
    tensors = {f"visual.{key}": tensor for key, tensor in visual.state_dict().items()}
    overlay = {"state_dict": tensors, "num_classes": width, "label_offset": 0, "hf_hub_id": None, "url": ""}
    try:
        network: nn.Module = timm.create_model(
            architecture,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            num_classes=width,
            **as_keywords(arguments),
        )
    except (LookupError, RuntimeError) as error:
        raise ArtefactError(f"--clip {name}: timm's {architecture} does not take its image tower: {error}") from error
    network.image_channels = 3  # type: ignore[assignment]
    return network


def _counterpart(name: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """timm's name and arguments for a tower of open_clip's own."""
    return (_resnet if isinstance(config["vision_cfg"]["layers"], list | tuple) else _vit)(name, config)


def _vit(name: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    given = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
    vision = given | config["vision_cfg"]
    patch, size, quick = vision["patch_size"], vision["image_size"], "_quickgelu" if config.get("quick_gelu") else ""
    heads, hidden = vision["width"] // vision["head_width"], int(vision["width"] * vision["mlp_ratio"])
    wanted = (vision["layers"], vision["width"], heads, hidden)
    for known in timm.list_models(f"vit_*_patch{patch}_*clip{quick}_{size}"):
        with torch.device("meta"):
            network = timm.create_model(known, num_classes=1)
        block = network.blocks[0]
        if wanted == (len(network.blocks), network.embed_dim, block.attn.num_heads, block.mlp.fc1.out_features):
            return known, {}
    return f"vit_base_patch16_clip{quick}_224", {
        "img_size": size,
        "patch_size": patch,
        "embed_dim": vision["width"],
        "depth": vision["layers"],
        "num_heads": heads,
        "mlp_ratio": vision["mlp_ratio"],
    }


def _resnet(name: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    given = {"width": 64, "image_size": 224}
    vision = given | config["vision_cfg"]
    for known in timm.list_models("resnet*_clip"):
        with torch.device("meta"):
            network = timm.create_model(known, num_classes=1)
        layers, features = [len(stage) for stage in network.stages], network.num_features
        size = network.default_cfg["input_size"][-1]
        if (layers, features, size) == (list(vision["layers"]), vision["width"] * 32, vision["image_size"]):
            return known, {}
    raise _refused(name, f"a ModifiedResNet of {vision['layers']} blocks and the width {vision['width']}")
