"""Few labels: learning from images without one, by the network's own confident answers.

`M` unlabelled images of a batch, `K` labels. Confidence is the largest probability. Both losses are means over all M
images, to which the rejected ones add zero (FixMatch, equation 4), so that few confident answers weigh little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from zoo.base.errors import UsageError, unknown_name

__all__ = ["Unlabelled", "fixmatch_loss", "pseudo_label_loss", "ramp_weight"]

_METHODS = ("fixmatch", "pseudo-label")


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """How to learn from the training images whose labels are not given."""

    method: str = "fixmatch"
    """fixmatch: the answer to a weakly changed image teaches the strongly changed one (Sohn et al. 2020,
    arXiv 2001.07685); pseudo-label: the answer to an image teaches itself (Lee 2013)."""
    threshold: float = 0.95
    """Least confidence of an answer that teaches (0.95: FixMatch, section 4); 0: every one, as Lee has it."""
    weight: float = 1.0
    """Of the unlabelled loss beside the labelled one."""
    ratio: int = 7
    """Unlabelled images for each labelled one in a batch (7: FixMatch, section 4); `fixmatch` sees each twice."""
    ramp: float = 0.0
    """Share of training over which the weight rises from 0 (Lee 2013, equation 16); FixMatch's threshold does without,
    a pseudo-label threshold of 0 does not."""
    temperature: float = 0.0
    """0: the answer counts as a hard label; else as probabilities, sharpened by this (UDA, arXiv 1904.12848: 0.4)."""

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise unknown_name("unlabelled.method", self.method, _METHODS)
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"unlabelled.threshold must be in [0, 1], got {self.threshold}")
        if not 0 < self.weight < math.inf:
            raise UsageError(f"unlabelled.weight must be a positive number, got {self.weight}")
        if self.ratio < 1:
            raise UsageError(f"unlabelled.ratio must be at least 1, got {self.ratio}")
        if not 0 <= self.ramp <= 1:
            raise UsageError(f"unlabelled.ramp must be in [0, 1], got {self.ramp}")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"unlabelled.temperature must be at least 0, got {self.temperature}")


def fixmatch_loss(
    weak: torch.Tensor, strong: torch.Tensor, threshold: float, *, temperature: float = 0.0
) -> tuple[torch.Tensor, float]:
    """Cross-entropy of the strong views' answers with the weak views' confident ones (Sohn et al. 2020, equation 4).

    Args:
        weak: logits [M, K] of the weakly augmented images; no gradient flows into them.
        strong: logits [M, K] of the strongly augmented ones.
        threshold: least confidence, of the probabilities before sharpening.
        temperature: 0 for hard labels; else the targets are softmax(weak / temperature).

    Returns:
        The loss, a scalar, and the share of images whose answer was confident enough.

    Raises:
        UsageError: the logits differ in shape.
    """
    if weak.shape != strong.shape or weak.ndim != 2:
        raise UsageError(
            f"expected logits [M, K] of both views, got weak {tuple(weak.shape)} and strong {tuple(strong.shape)}"
        )
    # In float32 where the network computes in bfloat16: its probabilities next to 1 are 1/256 apart.
    answers = weak.detach().float()
    confidence, labels = answers.softmax(dim=1).max(dim=1)
    accepted = (confidence >= threshold).float()
    targets = (answers / temperature).softmax(dim=1) if temperature else labels  # [M, K] or [M]
    losses = nn.functional.cross_entropy(strong.float(), targets, reduction="none")  # [M]
    share = accepted.mean()
    return (losses * accepted).mean(), float(share.item())


def pseudo_label_loss(
    logits: torch.Tensor, threshold: float, *, temperature: float = 0.0
) -> tuple[torch.Tensor, float]:
    """Cross-entropy of confident answers with their own hard labels (Lee 2013, equation 15, with a threshold).

    Args:
        logits: [M, K]; the labels come from these very answers, without a gradient.
        threshold: least confidence; 0: every image.
        temperature: as for :func:`fixmatch_loss`.

    Returns:
        As :func:`fixmatch_loss`.
    """
    return fixmatch_loss(logits, logits, threshold, temperature=temperature)


def ramp_weight(progress: float, config: Unlabelled) -> float:
    """The weight of the unlabelled loss when `progress` (0 to 1) of training is done (Lee 2013, equation 16)."""
    rise = min(1.0, progress / config.ramp) if config.ramp else 1.0
    return config.weight * rise
