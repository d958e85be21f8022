"""From a file's bytes to upright 8-bit pixels: which formats, which limits, what becomes of every kind of sample."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from zoo.errors import ImageError, ImageFormatError, ImageSizeError

__all__ = ["FORMATS", "MAX_PIXELS", "WHOLE_SIZE", "decode", "sniff"]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are decoded; the others (EPS above all) are refused."""

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs: a quarter of a gibibyte at three bytes per pixel."""

WHOLE_SIZE = (-1, -1)
"""Key of an image's `info` for the (width, height) in the file, upright, where least_edge was given for a JPEG file.

No text, because a PNG file can set any text key.
"""

_SLOW_BYTES = 1 << 19
_SLOW_CODECS = {"bmp_rle": "run-length encoded BMP", "ppm_plain": "PPM in decimal text"}
"""What Pillow 13 decodes in Python: a third of a microsecond a byte, in which no other thread runs."""

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    *((b"P%d%c" % (number, space), "PPM") for number in range(1, 7) for space in b" \t\n\v\f\r#"),
)

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF 2.32, table 6: the orientation's number -> what shows the stored rows upright."""
_SIDEWAYS = {_UPRIGHT[number] for number in range(5, 9)}

_PHOTOMETRIC, _BITS = 262, 258
"""Tags of TIFF 6.0, section 8."""

# Registers the decoders now, not inside the first request.
Image.init()


def sniff(data: bytes) -> str | None:
    """The format that a file's first bytes promise, as in FORMATS; None where it is none of them."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None)


def decode(
    data: bytes,
    *,
    colour: str = "RGB",
    exif: bool = True,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
    least_edge: int | None = None,
) -> Image.Image:
    """Decode the first frame of an image file to 8-bit RGB or greyscale.

    16-bit samples are scaled (Pillow alone would clip them): of one channel by 255 / 65535, of several by dropping the
    lower byte; both round down. Transparency is composited onto white, CMYK (as Adobe stores it in JPEG files:
    inverted), YCCK and palettes are converted, colour profiles are ignored, the EXIF orientation is applied.

    Args:
        data: the bytes of a file in one of FORMATS.
        colour: "RGB" or "L".
        exif: whether to apply the EXIF orientation; a TIFF file's own is always applied, and one that cannot be read
            counts as none.
        max_pixels: the largest width x height; checked from the header, before anything is decoded.
        formats: those of FORMATS that are accepted.
        least_edge: a JPEG file may come out at 1/2, 1/4 or 1/8 of its size, which is much faster, as long as its
            shorter edge keeps this many pixels; None: never.

    Raises:
        ImageFormatError: empty, or not in one of `formats`.
        ImageSizeError: more than `max_pixels`, or more than half a mebibyte in an encoding that is slow to decode.
        ImageError: truncated, corrupt, or with samples that have no defined range.
    """
    if not data:
        raise ImageFormatError("the image is empty (0 bytes)")
    kind = sniff(data)
    if kind is None or kind not in formats:
        found = f"{kind} images are not accepted" if kind else "not an image in a supported format"
        raise ImageFormatError(f"cannot decode the image: {found} (accepted: {', '.join(formats)})")
    try:
        file = Image.open(io.BytesIO(data), formats=(kind,))
        _check_size(file, len(data), max_pixels)
        whole = file.size
        small = file.draft(None, (least_edge, least_edge)) if least_edge is not None and kind == "JPEG" else None
        image = _loaded(file, data)
        if small:
            image = _without_padding(image, small[1])
        turn = _turn(image) if exif else None
        if turn is not None:
            image = image.transpose(turn)
        image = _to_8_bit(image)
        image = image if image.mode == colour else image.convert(colour)
        if small:
            image.info[WHOLE_SIZE] = whole[::-1] if turn in _SIDEWAYS else whole
        return image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageSizeError(f"the image has more than {min(MAX_PIXELS, max_pixels)} pixels") from None
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError and more on bad bytes.
        reason = f"its {kind} header is damaged" if isinstance(error, UnidentifiedImageError) else f"{error}"
        raise ImageError(f"cannot decode the image: {reason}; send a whole, undamaged file") from error


def _check_size(image: ImageFile.ImageFile, size: int, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageSizeError(f"the image has {width} x {height} pixels, at most {max_pixels} are accepted")
    codec = image.tile[0][0] if image.tile else ""
    if codec in _SLOW_CODECS and size > _SLOW_BYTES:
        raise ImageSizeError(
            f"the image is {_SLOW_CODECS[codec]} of {size} bytes, at most {_SLOW_BYTES} are accepted of these; "
            "save it as PNG"
        )


def _loaded(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    if image.tile and image.tile[0][0] == "ppm":
        return _scaled_ppm(image, data)
    image.load()
    if image.format == "TIFF":
        return _with_defined_range(image)
    return image


def _without_padding(image: Image.Image, extent: tuple[float, float, float, float]) -> Image.Image:
    """An image decoded small, whose last row and column may show the picture's edge only in part, to whole pixels.

    Taken for whole, they would squeeze everything by up to a pixel, which changes more than scaling itself.
    """
    _, _, width, height = extent
    if image.size == (width, height):
        return image
    return image.resize((round(width), round(height)), Image.Resampling.BICUBIC, box=extent)


def _scaled_ppm(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """A binary PPM file of an odd largest value, as Pillow decodes it, but not sample by sample in Python."""
    _, _, offset, options = image.tile[0]
    most = int(options[1]) if isinstance(options, tuple) else 0
    width, height = image.size
    shape = (height, width, 3) if image.mode == "RGB" else (height, width)
    stored = ">u2" if most > 255 else "u1"
    raw = np.frombuffer(data, dtype=stored, count=int(np.prod(shape)), offset=offset).reshape(shape)
    top = 65535 if image.mode == "I" else 255
    table = np.minimum(np.rint(np.arange(65536 if most > 255 else 256) / most * top), top)
    return Image.fromarray(table.astype(np.int32 if top > 255 else np.uint8)[raw])


def _with_defined_range(image: Image.Image) -> Image.Image:
    """A TIFF image whose samples span 0 to the largest value of its mode, 0 being black.

    Pillow neither scales 12 bits to 16 nor inverts 16 bits of which 0 is white.
    """
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    if image.mode == "I":
        raise ImageError("signed and 32-bit integers have no defined brightness range; convert them to 8 or 16 bits")
    if not image.mode.startswith("I;16"):
        return image
    most = (1 << int(tags.get(_BITS, (16,))[0])) - 1
    samples = np.asarray(image).astype(np.uint32)
    if tags.get(_PHOTOMETRIC) == 0:
        samples = most - samples
    return image if most == 65535 and tags.get(_PHOTOMETRIC) != 0 else Image.fromarray(_to_bytes(samples, most))


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # whatever Pillow raises on a damaged block, the picture itself is fine
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        samples = np.asarray(image).astype(np.int64)
        return Image.fromarray(_to_bytes(np.clip(samples, 0, 65535), 65535))
    if image.mode == "F":
        raise ImageError("floating-point images have no defined brightness range; convert it to 8 or 16 bits")
    if image.mode in ("PA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _to_bytes(samples: np.ndarray[Any, Any], most: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return (samples * 255 // most).astype(np.uint8)
