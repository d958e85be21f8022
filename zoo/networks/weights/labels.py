"""The labels that pretrained networks know: ImageNet in its sizes (from timm), or a text file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from timm.data import ImageNetInfo, infer_imagenet_subset

from zoo.base.errors import UsageError

__all__ = ["imagenet_labels", "imagenet_names", "imagenet_subset", "read_labels"]


def imagenet_subset(classes: int) -> str | None:
    """The edition of ImageNet that has so many classes: imagenet-1k, -12k, -21k-goog, -21k-miil, -22k, -22k-ms."""
    found = infer_imagenet_subset({"num_classes": classes})
    return None if found is None else str(found)


def imagenet_labels(subset: str) -> tuple[str, ...]:
    """One distinct word per class of an edition of ImageNet, in the order of the networks' outputs.

    The word is the first of WordNet's for the class. Where several classes share it, as the bird and the machine share
    "crane", the synset tells them apart: "crane (n02012849)".
    """
    info = ImageNetInfo(subset)
    words = [text.split(",")[0].strip() for text in info.label_descriptions()]
    shared = {word for word, count in Counter(words).items() if count > 1}
    return tuple(
        f"{word} ({synset})" if word in shared else word for word, synset in zip(words, info.label_names(), strict=True)
    )


def imagenet_names(classes: int) -> list[tuple[str, ...]]:
    """The labels of the edition of ImageNet with so many classes: as words, and as synsets, which its folders have."""
    subset = imagenet_subset(classes)
    return [] if subset is None else [imagenet_labels(subset), tuple(ImageNetInfo(subset).label_names())]


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels of a UTF-8 text file, one per line, in the order of the network's outputs.

    Raises:
        UsageError: no such file, not text, an empty line before the last label, or a label that is there twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--labels {path}: expected a text file with one label per line ({error})") from error
    while lines and not lines[-1]:
        lines.pop()
    seen: dict[str, int] = {}
    for number, label in enumerate(lines, start=1):
        if not label:
            raise UsageError(f"--labels {path}: line {number} is empty; expected one label per line")
        if (first := seen.setdefault(label, number)) != number:
            raise UsageError(
                f"--labels {path}: {label!r} is on the lines {first} and {number}; labels must differ, "
                "so tell them apart, like 'crane (bird)'"
            )
    if len(lines) < 2:
        raise UsageError(f"--labels {path}: expected at least two labels, one per line, got {len(lines)}")
    return tuple(lines)
