"""MixUp and CutMix: images and labels of a batch combined with those of the same batch in reverse order.

`B` is the batch size, `C` the channels, `h`, `w` the size of the input, `K` the number of labels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

from zoo.data.augment.pipeline import Augment

__all__ = ["mix", "mixes"]

_METHODS = ("mixup", "cutmix")


def mixes(config: Augment) -> bool:
    """Whether :func:`mix` makes soft targets of labels."""
    return any(getattr(config, name) for name in _METHODS)


def mix(
    inputs: torch.Tensor, labels: torch.Tensor, classes: int, config: Augment, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix a batch as `config.mixup` and `config.cutmix` say; where both are on, one of them is drawn for the batch.

    MixUp (Zhang et al. 2018, section 2): lambda of the image plus 1 - lambda of its partner. CutMix (Yun et al. 2019,
    section 3.1): a rectangle of the partner's, and lambda is exactly the share of pixels outside of it. Lambda is drawn
    from Beta(alpha, alpha), once for the batch; the i-th image's partner is the i-th from the end.

    Args:
        inputs: float32 [B, C, h, w]; not changed.
        labels: int64 [B].
        classes: K.
        config: `mixup`, `cutmix` and `mix_probability`.
        generator: the only source of randomness; on the CPU, whatever device the inputs are on.

    Returns:
        Inputs float32 [B, C, h, w] and targets float32 [B, K] whose rows sum to 1 (one-hot for a batch that
        `mix_probability` leaves alone); what was given, where neither is on.
    """
    methods = [name for name in _METHODS if getattr(config, name)]
    if not methods:
        return inputs, labels
    chance, choice, across, down = torch.rand(4, generator=generator).tolist()
    # Torch's Beta distribution takes no generator.
    seed = int(torch.randint(2**62, (1,), generator=generator))
    method = methods[int(choice * len(methods))]
    alpha = getattr(config, method)
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    targets = functional.one_hot(labels, classes).float()  # [B, K]
    if chance >= config.mix_probability:
        return inputs, targets
    if method == "mixup":
        mixed = inputs * share + inputs.flip(0) * (1 - share)
    else:
        mixed, share = _cut_and_paste(inputs, share, across, down)
    return mixed, targets * share + targets.flip(0) * (1 - share)


def _cut_and_paste(inputs: torch.Tensor, share: float, across: float, down: float) -> tuple[torch.Tensor, float]:
    """Paste a rectangle of each image's partner; also returns the share of pixels that stayed."""
    height, width = inputs.shape[-2:]
    tall, wide = height * math.sqrt(1 - share), width * math.sqrt(1 - share)
    # Its centre may lie anywhere, so an edge of the image may cut it off.
    top, bottom = (min(max(round(down * height + side * tall / 2), 0), height) for side in (-1, 1))
    left, right = (min(max(round(across * width + side * wide / 2), 0), width) for side in (-1, 1))
    mixed = inputs.clone()
    mixed[..., top:bottom, left:right] = inputs.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
