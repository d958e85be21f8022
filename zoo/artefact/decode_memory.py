"""How much memory decoding an image takes, from its header alone.

Upper bounds, each measured as the growth of a process that decoded 25 megapixels (Pillow 13, libwebp 1.6, libavif 1.4;
the test measures them again).
"""

from __future__ import annotations

from typing import Any

from PIL import ImageFile

from zoo.artefact.samples import deep_colours

__all__ = ["WITH_ALPHA", "bytes_to_decode"]

WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
"""Pillow's modes with transparency."""

_BYTES = {"1": 1, "L": 1, "P": 1}
"""Mode -> bytes that Pillow keeps per pixel; of I;16 two, of all others four."""

_RESULT = 4
"""RGB; greyscale takes one."""

_DECODERS = {"AVIF": 13, "HEIF": 13, "WEBP": 16}
"""Bytes per pixel of what a format's library keeps beside Pillow's image: canvases, planes and its answer."""

_SPARE = 8 << 20
"""Bytes that do not depend on the size: bands that are converted, rows, tables."""

_DEEP = 28
"""Several channels of 16 bits: decoded twice, put together, and looked up."""

_NUMBERS = 40 << 20
"""Bytes of the bands of 32-bit and floating-point samples that are scaled."""

_BITS, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT = 258, 277, 322, 323
"""Tags of TIFF 6.0, sections 8 and 15."""


def bytes_to_decode(file: ImageFile.ImageFile, size: int, *, ranged: bool, coefficients: int) -> int:
    """The most memory, in bytes, that decoding and converting to upright 8 bits takes, beside the file itself.

    Args:
        file: opened and, where it is to be decoded small, told so; not loaded.
        size: of the file, in bytes, which some decoders copy.
        ranged: whether samples of more than 8 bits are scaled by a range, for which a file is decoded twice.
        coefficients: pixels of a JPEG file that is not decoded row by row, before it was told to be decoded small; 0:
            of any other.
    """
    pixels = file.width * file.height
    stored = 2 if file.mode.startswith("I;16") else _BYTES.get(file.mode, 4)
    kept = 2 * coefficients * len(file.getbands()) + _of_strips(file, pixels) + size + _SPARE
    if ranged and deep_colours(file):
        return _DEEP * pixels + kept
    if file.tile and file.tile[0][0] == "ppm":  # decoded with NumPy
        return (stored + 8) * pixels + kept
    if file.mode in ("I", "F"):
        kept += _NUMBERS
    # Loading; converting; turning the result upright: of each the image before and the one after it.
    each = max(stored + max(_DECODERS.get(str(file.format), 0), _RESULT), 2 * _RESULT)
    return each * pixels + kept


def _of_strips(file: ImageFile.ImageFile, pixels: int) -> int:
    """Bytes that a compressed TIFF file's largest strip or tile may have: all of the image, or, of a tile, more."""
    if file.format != "TIFF" or not file.tile or file.tile[0][0] != "libtiff":
        return 0
    tags: Any = getattr(file, "tag_v2", {})
    bits = tags.get(_BITS, (1,))
    depth = sum(bits) if len(bits) > 1 else bits[0] * tags.get(_SAMPLES, 1)
    tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_HEIGHT, 0)
    return int(max(pixels, tile) * max(depth, 8 * _RESULT) // 8)
