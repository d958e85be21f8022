"""Samples of more than 8 bits: how large they are, which value is white, and how they become 8 bits.

`H`, `W` are an image's height and width, `C` its colours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from zoo.base.errors import ImageError

__all__ = ["SIXTEEN", "Depth", "colours", "deep_colours", "looked_up", "one_channel", "to_8_bits"]

SIXTEEN = "16-bit images"

_BAND = 1 << 20
"""Samples that are converted at once, so that the temporary arrays stay small."""

_PHOTOMETRIC, _BITS, _FORMAT = 262, 258, 339
"""Tags of TIFF 6.0, sections 8 and 19."""

_OTHER_END = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}


@dataclass(frozen=True)
class Depth:
    """The samples of an image of more than 8 bits whose file does not say which value is white."""

    kind: str
    """SIXTEEN, or what has no range unless one is given."""
    largest: float
    """The largest sample, transparency left out."""


def one_channel(image: Image.Image, *, white: float | None, depths: list[Depth] | None) -> Image.Image:
    """An image of one channel of 16 or 32 bits, loaded, in 8 bits: 0 is black, the range's end and beyond are white.

    Where the file says its range (a TIFF file of 12 bits), that holds. Pillow neither scales 12 bits to 16 nor inverts
    16 bits of which 0 is white.

    Args:
        image: of the mode I;16, I or F.
        white: the sample that is white where the file does not say; None: 65535, of 16 bits.
        depths: gets what was found where the file does not say; any samples are accepted then.

    Raises:
        ImageError: samples without a range, or that are no numbers.
    """
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    inverted = tags.get(_PHOTOMETRIC) == 0
    if image.format == "TIFF" and not image.mode.startswith("I;16"):
        return _without_range(image, tags, inverted=inverted, white=white, depths=depths)
    most: float = (1 << int(tags.get(_BITS, (16,))[0])) - 1
    if most == 65535:
        if depths is not None:
            depths.append(Depth(SIXTEEN, float(max(band.max() for _, band in _bands(image)))))
        most = white if white is not None else 65535
    return _narrowed(image, to_8_bits(most, inverted=inverted))


def to_8_bits(white: float, *, inverted: bool = False) -> npt.NDArray[np.uint8]:
    """What becomes of each 16-bit sample where `white` and beyond are 255, or 0 if inverted: uint8 [65536]."""
    samples = np.minimum(np.arange(65536, dtype=np.float64), white)
    return np.floor((white - samples if inverted else samples) * 255 / white).astype(np.uint8)


def _narrowed(image: Image.Image, table: npt.NDArray[np.uint8]) -> Image.Image:
    """An image of one channel of 16 bits to 8 bits: table[sample], samples beyond the table as its ends."""
    return _in_bands(image, lambda band: table[np.clip(band, 0, 65535) if image.mode == "I" else band])


def looked_up(samples: npt.NDArray[Any], table: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """table[samples] in 8 bits, without an index of 8 bytes per sample."""
    table = table.astype(np.uint8)
    result = np.empty(samples.shape, dtype=np.uint8)
    flat, into = samples.reshape(-1), result.reshape(-1)
    for start in range(0, flat.size, _BAND):
        into[start : start + _BAND] = table[flat[start : start + _BAND]]
    return result


def deep_colours(image: ImageFile.ImageFile) -> bool:
    """Whether an image that is not loaded yet has several channels of 16 bits, of which Pillow keeps the upper 8."""
    return bool(image.tile) and ";16" in _raw_mode(image) and image.mode not in ("I", "L") and image.mode[:2] != "I;"


def colours(
    image: ImageFile.ImageFile,
    again: Callable[[], ImageFile.ImageFile],
    *,
    white: float | None,
    depths: list[Depth] | None,
) -> Image.Image:
    """An image of several channels of 16 bits (see :func:`deep_colours`) in 8 bits.

    Pillow keeps the upper 8 bits; the lower ones come from decoding a second time with the bytes in the other order.

    Args:
        image: not loaded yet.
        again: opens the same file once more.
        white: see :func:`one_channel`.
        depths: gets what was found.

    Raises:
        ImageError: inks or premultiplied colours, whose lower bits cannot be had.
    """
    name, _, end = _raw_mode(image).partition(";")
    if name == "LA":
        # The four bytes of a pixel, as they are in the file.
        _set_raw_mode(image, "RGBA")
        image.load()
        samples = np.asarray(image).astype(np.uint16)[:, :, ::2] << 8 | np.asarray(image)[:, :, 1::2]
        samples = samples[:, :, (0, 0, 0, 1)]
    elif name in ("RGB", "RGBA", "RGBX") and end in _OTHER_END:
        other = again()
        _set_raw_mode(other, f"{name};{_OTHER_END[end]}")
        image.load()
        other.load()
        samples = np.asarray(image).astype(np.uint16)
        samples <<= 8
        samples |= np.asarray(other)
    elif white is None:
        image.load()
        return image
    else:
        raise ImageError(
            f"16-bit images of the kind {name} cannot be scaled by a range; save it as 16-bit RGB without transparency"
        )
    if depths is not None:
        depths.append(Depth(SIXTEEN, float(samples[:, :, :3].max())))
    result = looked_up(samples, to_8_bits(white if white is not None else 65535))
    if samples.shape[2] == 4:
        # A share of what is behind, whatever is white: the whole 16 bits.
        result[:, :, 3] = samples[:, :, 3] >> 8
    found = Image.fromarray(result)
    # A TIFF file is turned upright while it is loaded; of the others, the orientation is still to be applied.
    if image.format != "TIFF":
        found.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return found


def _without_range(
    image: Image.Image, tags: Any, *, inverted: bool, white: float | None, depths: list[Depth] | None
) -> Image.Image:
    """A TIFF file's signed, 32-bit or floating-point samples."""
    kind = "floating-point images" if image.mode == "F" else "signed and 32-bit integers"
    if white is None and depths is None:
        raise ImageError(f"{kind} have no defined brightness range; convert it to 8 or 16 bits")
    # Pillow's mode I is signed.
    unsigned = image.mode == "I" and tags.get(_FORMAT, (1,))[0] == 1
    largest = -np.inf

    def scaled(band: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        nonlocal largest
        band = band.view(np.uint32) if unsigned else band
        largest = max(largest, float(band.max()))
        if not np.isfinite(band).all():
            raise ImageError("the image has samples that are no numbers, or infinite; replace them")
        end = white if white is not None else 1.0
        band = np.clip(band.astype(np.float64), 0, end)
        return np.floor((end - band if inverted else band) * 255 / end)

    result = _in_bands(image, scaled)
    if image.mode == "F" and white is not None and 0 < largest <= 1 < white:
        raise ImageError(
            f"floating-point samples of at most {largest:.3g} where {white:g} is expected to be white; multiply them "
            "by it, or convert the image to 8 bits"
        )
    if depths is not None:
        depths.append(Depth(kind, largest))
    return result


def _in_bands(image: Image.Image, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Image.Image:
    result = np.empty((image.height, image.width), dtype=np.uint8)
    for place, band in _bands(image):
        result[place] = change(band)
    return Image.fromarray(result)


def _bands(image: Image.Image) -> Iterator[tuple[tuple[slice, slice], npt.NDArray[Any]]]:
    """The parts of an image of one channel, and where they are."""
    columns = min(image.width, _BAND)
    rows = max(1, _BAND // columns)
    for top in range(0, image.height, rows):
        for left in range(0, image.width, columns):
            right, bottom = min(left + columns, image.width), min(top + rows, image.height)
            yield (slice(top, bottom), slice(left, right)), np.asarray(image.crop((left, top, right, bottom)))


def _raw_mode(image: ImageFile.ImageFile) -> str:
    options = image.tile[0][3]
    return str(options[0] if isinstance(options, tuple) else options or "")


def _set_raw_mode(image: ImageFile.ImageFile, mode: str) -> None:
    image.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode) for tile in image.tile
    ]
