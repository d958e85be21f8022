"""Images of more than 8 bits a sample in a data set: which value is taken as white."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.artefact.samples import SIXTEEN, Depth
from zoo.data.dataset import Sample

__all__ = ["measured_range", "without_range"]


def measured_range(samples: Sequence[Sample]) -> tuple[float | None, str]:
    """What is white in images that keep 10, 12 or 14 bits in 16, as their largest sample tells.

    Args:
        samples: training images.

    Returns:
        The largest value of so many bits (4095 of 12), None where no image has 16 bits or they use them all; and a
        sentence about it, "" if there is nothing to say.
    """
    found = [sample.depth.largest for sample in samples if sample.depth and sample.depth.kind == SIXTEEN]
    white = _next_range(max(found, default=0.0))
    if not found or not max(found) or white >= 65535:
        return None, ""
    return white, (
        f"{len(found)} of {len(samples)} training images have 16 bits a sample and none above {max(found):.0f}, so "
        f"{white:.0f} is white (`range` in the card); for another value: --set reading.range=65535"
    )


def without_range(depth: Depth) -> str:
    """Why an image cannot be used unless it is said which sample is white; "": it can."""
    if depth.kind == SIXTEEN:
        return ""
    return (
        f"{depth.kind} have no defined brightness range: say which sample is white (--set reading.range=VALUE in "
        "training) or convert them to 8 or 16 bits"
    )


def _next_range(largest: float) -> float:
    """The largest value of the fewest bits that hold `largest`: 1, 3, 7, ..., 4095, ..."""
    white = 1
    while white < largest:
        white = 2 * white + 1
    return float(white)
