"""From image bytes to the network's input: THE evaluation preprocessing.

Training's validation, calibration, serving and benchmarks all go through :func:`preprocess`, or through its three
steps (:func:`decode_for`, :func:`fit`, :func:`normalise`) one by one, so that a number measured in one place holds in
the others.

Shapes: H, W of the card's input size; C is 3 (RGB) or 1 (greyscale).
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from zoo.artefact.card import Input
from zoo.artefact.decode import FORMATS, MAX_PIXELS, WHOLE_SIZE, Room, decode, sniff
from zoo.base.errors import ImageSizeError

__all__ = [
    "FORMATS",
    "GOLDEN_RULE",
    "MAX_PIXELS",
    "at_once",
    "batch",
    "decode",
    "decode_for",
    "encode_png",
    "golden_image",
    "least_edge",
    "normalise",
    "pixels",
    "preprocess",
    "scale_and_shift",
    "sniff",
    "to_input_size",
]

GOLDEN_RULE = "shake256-blocks/1"

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_SUPPORT = {Image.Resampling.BILINEAR: 1, Image.Resampling.BICUBIC: 2, Image.Resampling.LANCZOS: 3}
"""How far a filter reaches to either side, in pixels of the result or of the source, whichever are larger."""

_SPARE = 2
"""A JPEG file decoded small keeps at least this many times the pixels per edge that resizing leaves.

Scaling inside the decoder drops the upper part of each block's spectrum, which is not what the resizing filter does;
halving once more hides the difference. Pillow's Image.thumbnail has the same margin (`reducing_gap=2.0`).
"""


def least_edge(spec: Input) -> int:
    """Pixels along the shorter edge that a JPEG file decoded small must keep (see Input.jpeg_draft)."""
    return _SPARE * max(spec.canvas)


def decode_for(
    data: bytes,
    spec: Input,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
    small: bool | None = None,
    room: Room | None = None,
) -> Image.Image:
    """Decode as a card says: upright, in its colours, 16-bit samples by its range.

    JPEG files of more than `max_pixels` are decoded small, and large ones, too, where the card records what that
    changes.

    Args:
        data: the bytes of a file.
        spec: the card's input.
        max_pixels: see :func:`decode`.
        formats: see :func:`decode`.
        small: whether large JPEG files are decoded small; None: as the card says.
        room: see :func:`decode`.

    Raises:
        ImageError: see :func:`decode`.
    """
    return decode(
        data,
        colour=spec.colour,
        exif=spec.exif,
        max_pixels=max_pixels,
        formats=formats,
        white=spec.range,
        least_edge=least_edge(spec) if (bool(spec.jpeg_draft) if small is None else small) else None,
        huge_edge=least_edge(spec),
        room=room,
    )


def to_input_size(image: Image.Image, spec: Input, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Resize and crop a decoded image: uint8 [H, W, C].

    The sizes and roundings are torchvision's (Resize of the shorter edge on PIL images, CenterCrop), which is what
    timm's published accuracies were measured with.

    Raises:
        ImageSizeError: so elongated that resizing would make more than `max_pixels` of it.
    """
    height, width = spec.size
    resample = _FILTERS[spec.resize.filter]
    if spec.resize.edge is None:
        image = image.resize((width, height), resample)
    else:
        size = _covering(image, spec.canvas, max_pixels)
        left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        image = _resize_and_crop(image, size, (left, top, left + width, top + height), resample)
    array = np.asarray(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def _covering(image: Image.Image, canvas: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """The smallest (width, height) of the image's aspect ratio that covers a canvas of (height, width)."""
    # Of the image in the file, so that one decoded small is cropped at the very same place.
    width, height = image.info.get(WHOLE_SIZE, image.size)
    high, wide = canvas
    if wide * height >= high * width:
        size = wide, max(high, int(wide * height / width))
    else:
        size = max(wide, int(high * width / height)), high
    # Enlarged by no more than the limit of a whole image; a ratio of 16 to 1 is always fine.
    if size[0] * size[1] > max(max_pixels, 16 * max(canvas) ** 2):
        raise ImageSizeError(f"the image is too elongated: {image.width} x {image.height} pixels")
    return size


def _resize_and_crop(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int], resample: Image.Resampling
) -> Image.Image:
    """What `image.resize(size, resample).crop(box)` gives, bit for bit, without most of what the crop throws away.

    Pillow resizes along rows first, then along columns, rounding in between. Rows are left out before the first pass
    and columns before the second one, all at their old places: Pillow's `resize(box=)` computes its coefficients from
    single-precision coordinates, which changes pixels.
    """
    if image.size == size:
        return image.crop(box)
    if resample not in _SUPPORT or not _rows_first(image.size, size):
        return image.resize(size, resample).crop(box)
    left, top, right, bottom = box
    ratio = image.height / size[1]
    reach = _SUPPORT[resample] * max(ratio, 1.0)
    first = max(0, math.floor((top + 0.5) * ratio - reach) - 1)
    last = min(image.height, math.ceil((bottom - 0.5) * ratio + reach) + 1)
    band = image if last - first == image.height else image.crop((0, first, image.width, last))
    band = band.resize((size[0], last - first), resample).crop((left, 0, right, last - first))
    if band.height < image.height:
        canvas = Image.new(image.mode, (right - left, image.height))
        canvas.paste(band, (0, first))
        band = canvas
    return band.resize((right - left, size[1]), resample).crop((0, top, right - left, bottom))


def _rows_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether Pillow resizes along rows before columns.

    From version 13 on it does not where the height shrinks by more than twice the pixels that the width does:
    https://github.com/python-pillow/Pillow/pull/9549
    """
    return new[1] >= old[1] or old[1] - new[1] < 2 * (old[0] - new[0])


def pixels(data: bytes, spec: Input, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode, resize and crop: uint8 [H, W, C].

    Raises:
        ImageError: see :func:`decode` and :func:`fit`.
    """
    return to_input_size(decode_for(data, spec, max_pixels=max_pixels), spec, max_pixels=max_pixels)


def scale_and_shift(spec: Input) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Normalisation as one multiplication and one addition per channel: (pixel * scale - mean) / std.

    Returns:
        Two float32 arrays [C]: factor and offset.
    """
    mean, std = np.asarray(spec.mean, dtype=np.float64), np.asarray(spec.std, dtype=np.float64)
    return (spec.scale / std).astype(np.float32), (-mean / std).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _planes(spec: Input) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Factor and offset as [C, 1, 1], computed once."""
    factor, offset = scale_and_shift(spec)
    return factor[:, None, None], offset[:, None, None]


def normalise(
    array: npt.NDArray[np.uint8], spec: Input, *, out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """uint8 [..., H, W, C] to float32 [..., C, H, W], contiguous unless it is written into a given `out`."""
    factor, offset = _planes(spec)
    channels_first = np.moveaxis(array, -1, -3)  # [..., C, H, W]
    if out is None:
        out = np.empty(channels_first.shape, dtype=np.float32)
    out[...] = channels_first
    out *= factor
    out += offset
    return out


def preprocess(data: bytes, spec: Input, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.float32]:
    """Image bytes to one network input: float32 [C, H, W].

    Raises:
        ImageError: see :func:`decode` and :func:`fit`.
    """
    return normalise(pixels(data, spec, max_pixels=max_pixels), spec)


def at_once(size: Sequence[int], *, most: int) -> int:
    """How many images to compute at once: `most` of up to 224 x 224 pixels, of larger ones as many fewer, at least one.

    What a network keeps meanwhile grows with the pixels.

    Args:
        size: height and width.
        most: of small images.
    """
    return max(1, min(most, most * 224**2 // math.prod(size)))


def batch(images: Sequence[bytes], spec: Input) -> npt.NDArray[np.float32]:
    """Several images to one input: float32 [B, C, H, W]."""
    inputs = np.empty((len(images), *spec.shape), dtype=np.float32)
    for data, row in zip(images, inputs, strict=True):
        normalise(pixels(data, spec), spec, out=row)
    return inputs


def encode_png(array: npt.NDArray[np.uint8]) -> bytes:
    """uint8 [H, W] or [H, W, 3] as a PNG file (lossless)."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def golden_image(seed: int) -> bytes:
    """The image of the golden self-check (GOLDEN_RULE): 8 x 8 coloured blocks of 32 pixels, as a PNG file.

    The colours are the output of SHAKE-256 for "shake256-blocks/1:<seed>", so that any machine draws the same ones.
    """
    raw = hashlib.shake_256(f"{GOLDEN_RULE}:{seed}".encode()).digest(8 * 8 * 3)
    blocks = np.frombuffer(raw, dtype=np.uint8).reshape(8, 8, 3)
    return encode_png(blocks.repeat(32, axis=0).repeat(32, axis=1))
