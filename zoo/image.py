"""From image bytes to the network's input: THE evaluation preprocessing.

Training's validation, calibration, serving and benchmarks all go through :func:`preprocess`, so that a number
measured in one place holds in the others.

Shapes: H, W of the card's input size; C is 3 (RGB) or 1 (greyscale).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.card import Input
from zoo.errors import ImageError

__all__ = [
    "FORMATS",
    "GOLDEN_RULE",
    "MAX_PIXELS",
    "batch",
    "decode",
    "encode_png",
    "golden_image",
    "normalise",
    "pixels",
    "preprocess",
    "scale_and_shift",
]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are decoded; the others (EPS above all) are refused."""

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs: a quarter of a gibibyte at three bytes per pixel."""

GOLDEN_RULE = "shake256-blocks/1"

# Registers the decoders now, not inside the first request.
Image.init()

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def decode(data: bytes, *, colour: str = "RGB", exif: bool = True, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame of an image file to 8-bit RGB or greyscale.

    16-bit samples are scaled (Pillow alone would clip them), transparency is composited onto white, CMYK and
    palettes are converted, the EXIF orientation is applied.

    Args:
        data: the bytes of a file in one of FORMATS.
        colour: "RGB" or "L".
        exif: whether to apply the EXIF orientation.
        max_pixels: the largest width x height; checked from the header, before anything is decoded.

    Raises:
        ImageError: empty, unknown format, truncated, corrupt or too large.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes)")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(f"the image has {width} x {height} pixels, at most {max_pixels} are accepted")
        image.load()
        if exif:
            image = ImageOps.exif_transpose(image)
        return _to_8_bit(image).convert(colour)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"the image has more than {MAX_PIXELS} pixels") from None
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError and more on bad bytes.
        reason = "not an image in a supported format" if isinstance(error, UnidentifiedImageError) else f"{error}"
        raise ImageError(f"cannot decode the image: {reason} (accepted: {', '.join(FORMATS)})") from error


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        samples = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(samples, 0, 65535) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ImageError("floating-point images have no defined brightness range; convert it to 8 or 16 bits")
    if image.mode in ("PA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def pixels(data: bytes, spec: Input, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode, resize and crop: uint8 [H, W, C].

    The sizes and roundings are torchvision's (Resize of the shorter edge on PIL images, CenterCrop), which is what
    timm's published accuracies were measured with.

    Raises:
        ImageError: see :func:`decode`.
    """
    image = decode(data, colour=spec.colour, exif=spec.exif, max_pixels=max_pixels)
    height, width = spec.size
    resample = _FILTERS[spec.resize.filter]
    if spec.resize.edge is None:
        image = image.resize((width, height), resample)
    else:
        image = _resize_shorter(image, spec.resize.edge, resample, max_pixels)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    array = np.asarray(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def _resize_shorter(image: Image.Image, edge: int, resample: Image.Resampling, max_pixels: int) -> Image.Image:
    shorter, longer = sorted(image.size)
    target = int(edge * longer / shorter)
    # Enlarged by no more than the limit of a whole picture; a ratio of 16 to 1 is always fine.
    if target * edge > max(max_pixels, 16 * edge * edge):
        raise ImageError(f"the image is too elongated: {image.width} x {image.height} pixels")
    size = (edge, target) if image.width <= image.height else (target, edge)
    return image if image.size == size else image.resize(size, resample)


def scale_and_shift(spec: Input) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Normalisation as one multiplication and one addition per channel: (pixel * scale - mean) / std.

    Returns:
        Two float32 arrays [C]: factor and offset.
    """
    mean, std = np.asarray(spec.mean, dtype=np.float64), np.asarray(spec.std, dtype=np.float64)
    return (spec.scale / std).astype(np.float32), (-mean / std).astype(np.float32)


def normalise(array: npt.NDArray[np.uint8], spec: Input) -> npt.NDArray[np.float32]:
    """uint8 [..., H, W, C] to float32 [..., C, H, W], contiguous."""
    factor, offset = scale_and_shift(spec)
    scaled = array.astype(np.float32) * factor + offset
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def preprocess(data: bytes, spec: Input, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.float32]:
    """Image bytes to one network input: float32 [C, H, W].

    Raises:
        ImageError: see :func:`decode`.
    """
    return normalise(pixels(data, spec, max_pixels=max_pixels), spec)


def batch(images: Sequence[bytes], spec: Input) -> npt.NDArray[np.float32]:
    """Several images to one input: float32 [B, C, H, W]."""
    return np.stack([preprocess(data, spec) for data in images])


def encode_png(array: npt.NDArray[np.uint8]) -> bytes:
    """uint8 [H, W] or [H, W, 3] as a PNG file (lossless)."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def golden_image(seed: int) -> bytes:
    """The picture of the golden self-check (GOLDEN_RULE): 8 x 8 coloured blocks of 32 pixels, as a PNG file.

    The colours are the output of SHAKE-256 for "shake256-blocks/1:<seed>", so that any machine draws the same ones.
    """
    raw = hashlib.shake_256(f"{GOLDEN_RULE}:{seed}".encode()).digest(8 * 8 * 3)
    blocks = np.frombuffer(raw, dtype=np.uint8).reshape(8, 8, 3)
    return encode_png(blocks.repeat(32, axis=0).repeat(32, axis=1))
