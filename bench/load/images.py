"""The images that a server is sent."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from zoo.base.errors import ArtefactError
from zoo.base.progress import note

__all__ = ["default_image", "images_of"]

_MOST = 256
"""Every run hands all its images to its generator; MLPerf's library for ResNet-50 has 1,024."""


def default_image() -> Path:
    """scikit-learn's photograph of a temple, 640 x 427 pixels.

    Raises:
        ArtefactError: scikit-learn is not installed.
    """
    found = importlib.util.find_spec("sklearn")
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(folder) / "datasets" / "images" / "china.jpg").is_file():
            return path
    raise ArtefactError("no photograph to send; name one with --image FILE, or pip install 'pocketzoo[train]'")


def images_of(paths: Sequence[Path]) -> list[tuple[str, bytes]]:
    """Name and bytes of image files and of those below folders; no paths: the photograph of :func:`default_image`.

    Of more than 256 images so many are taken, spread evenly.

    Raises:
        DataError: a path that is not there, a file that is no image, or a folder without images.
        ArtefactError: there is no photograph to send.
    """
    if not paths:
        path = default_image()
        return [(path.name, path.read_bytes())]
    from zoo.data.image_set import named

    samples = named(paths).samples
    if (many := len(samples)) > _MOST:
        note(f"{many} images: {_MOST} of them are sent, in turn")
        samples = [samples[place * many // _MOST] for place in range(_MOST)]
    return [(sample.name, sample.read()) for sample in samples]
