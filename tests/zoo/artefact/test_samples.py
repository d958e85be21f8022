"""Samples of more than 8 bits: every kind that can be stored, and what is white in it."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zoo.factories import encode, make_input, picture
from zoo.artefact.decode import decode, inspect
from zoo.artefact.preprocess import decode_for, pixels
from zoo.artefact.samples import SIXTEEN, Depth
from zoo.base.errors import ImageError

WHITES = [1023, 4095, 16383, 65535]
"""10, 12, 14 and 16 bits."""


def png16(samples: np.ndarray) -> bytes:
    """A PNG file of 16-bit samples [H, W, C]: grey, grey and alpha, RGB, or RGBA."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(
    samples: np.ndarray,
    order: str = "<",
    *,
    photometric: int | None = None,
    deflated: bool = False,
    alpha: bool = True,
) -> bytes:
    """A TIFF file of the samples [H, W, C] as they are: 16 or 32 bits, unsigned, signed or floating point."""
    height, width, channels = samples.shape
    body = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    body = zlib.compress(body) if deflated else body
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    photometric = (2 if channels >= 3 else 1) if photometric is None else photometric
    long, short = (lambda value: (4, [value])), (lambda *values: (3, list(values)))
    tags: dict[int, tuple[int, list[int]]] = {256: long(width), 257: long(height)}
    tags |= {258: short(*[8 * samples.itemsize] * channels), 259: short(8 if deflated else 1), 262: short(photometric)}
    tags |= {273: long(0), 277: short(channels), 278: long(height), 279: long(len(body))}
    tags |= ({338: short(2)} if channels == 4 and alpha else {}) | {339: short(*[kind] * channels)}
    spare, place = b"", 8 + 2 + 12 * len(tags) + 4
    at = place + sum(2 * len(values) for _, values in tags.values() if len(values) > 2)
    entries = b""
    for tag, (size, values) in tags.items():
        packed = struct.pack(f"{order}{len(values)}{'HI'[size == 4]}", *([at] if tag == 273 else values))
        if len(packed) > 4:
            packed, spare = struct.pack(f"{order}I", place + len(spare)), spare + packed
        entries += struct.pack(f"{order}HHI", tag, size, len(values)) + packed.ljust(4, b"\0")
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4) + spare + body


def pnm(samples: np.ndarray, most: int = 65535) -> bytes:
    height, width, channels = samples.shape
    return b"P%d %d %d %d\n" % (5 if channels == 1 else 6, width, height, most) + samples.astype(">u2").tobytes()


def opaque(samples: np.ndarray) -> np.ndarray:
    return np.dstack((samples, np.full_like(samples[:, :, :1], 65535)))


STORED: dict[str, tuple[int, Any]] = {
    "PNG grey": (1, png16),
    "PNG grey and alpha": (1, lambda samples: png16(opaque(samples))),
    "PNG RGB": (3, png16),
    "PNG RGBA": (3, lambda samples: png16(opaque(samples))),
    "TIFF grey": (1, tiff),
    "TIFF grey, big-endian": (1, lambda samples: tiff(samples, ">")),
    "TIFF RGB": (3, tiff),
    "TIFF RGB, big-endian": (3, lambda samples: tiff(samples, ">")),
    "TIFF RGB, deflated": (3, lambda samples: tiff(samples, deflated=True)),
    "TIFF RGBA": (3, lambda samples: tiff(opaque(samples))),
    "PGM": (1, pnm),
    "PPM": (3, pnm),
}
"""Channels of colour, and how uint16 [H, W, C] become a file that does not say which sample is white."""


def _decoded(data: bytes, channels: int, white: float | None) -> np.ndarray:
    array = np.asarray(decode(data, colour="L" if channels == 1 else "RGB", white=white))
    return array.reshape(*array.shape[:2], channels)


@pytest.mark.parametrize("stored", STORED)
@given(seed=st.integers(0, 999), white=st.sampled_from(WHITES), shape=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_16_bits_are_scaled_by_what_is_white_and_larger_ones_saturate(stored, seed, white, shape):
    channels, write = STORED[stored]
    samples = np.random.default_rng(seed).integers(0, min(65536, 2 * white), (*shape, channels)).astype(np.uint16)
    data = write(samples)
    wanted = np.minimum(samples.astype(int), white) * 255 // white
    assert np.array_equal(_decoded(data, channels, white), wanted)
    assert inspect(data) == Depth(SIXTEEN, float(samples.max()))


@pytest.mark.parametrize("stored", STORED)
def test_without_a_range_nothing_has_changed(stored):
    channels, write = STORED[stored]
    samples = np.random.default_rng(1).integers(0, 65536, (5, 6, channels)).astype(np.uint16)
    # Of several channels Pillow keeps the upper byte; what it reads sample by sample is rounded.
    wanted = samples // 257 if channels == 1 and "alpha" not in stored else samples >> 8
    wanted = np.rint(samples / 257).astype(int) if stored == "PPM" else wanted
    assert np.array_equal(_decoded(write(samples), channels, None), wanted)


def test_a_file_that_says_its_range_keeps_it():
    samples = np.array([[[0], [1000], [2000]]], np.uint16)
    data = pnm(samples, most=2000)
    assert _decoded(data, 1, 4095).ravel().tolist() == _decoded(data, 1, None).ravel().tolist() == [0, 127, 255]
    assert inspect(data) is None
    eight_bits = encode(picture(3, 4, 4))
    assert inspect(eight_bits) is None
    assert np.array_equal(np.asarray(decode(eight_bits, white=15)), picture(3, 4, 4))


def test_tiff_of_12_in_16_bits_where_zero_is_white():
    samples = np.array([[[0], [4095], [1365], [5000]]], np.uint16)
    assert _decoded(tiff(samples, photometric=0), 1, 4095).ravel().tolist() == [255, 0, 170, 0]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("kind", "white", "largest"),
    [("int16", 4095, 5000), ("int32", 4095, 5000), ("int32", 1e6, 2e6), ("float32", 1.0, 1.5), ("float32", 300.5, 400)],
)
def test_samples_without_a_range_need_one(kind, white, largest, order):
    samples = np.random.default_rng(2).uniform(-0.1 * largest, largest, (4, 5, 1)).astype(kind)
    data = tiff(samples, order)
    with pytest.raises(ImageError, match="no defined brightness range; convert it"):
        decode(data)
    depth = inspect(data)
    assert depth is not None and depth.largest == samples.max() and depth.kind != SIXTEEN
    wanted = np.floor(np.clip(samples.astype(float), 0, white) * 255 / white)
    assert np.array_equal(_decoded(data, 1, white), wanted)


def test_unsigned_32_bits_do_not_turn_negative():
    samples = np.array([[[0], [3_000_000_000], [4_000_000_000]]], np.uint32)
    depth = inspect(tiff(samples))
    assert depth is not None and depth.largest == 4e9
    assert _decoded(tiff(samples), 1, 4e9).ravel().tolist() == [0, 191, 255]


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(odd):
    data = tiff(np.array([[[0.5], [odd]]], np.float32))
    for read in (inspect, lambda data: decode(data, white=1.0)):
        with pytest.raises(ImageError, match="no numbers, or infinite"):
            read(data)


def test_shares_where_counts_are_expected_are_refused():
    shares = tiff(np.array([[[0.25], [0.75]]], np.float32))
    with pytest.raises(ImageError, match=r"at most 0\.75 where 4095 is expected to be white"):
        decode(shares, white=4095)
    assert _decoded(tiff(np.zeros((1, 2, 1), np.float32)), 1, 4095).ravel().tolist() == [0, 0]


def test_inks_and_premultiplied_colours_of_16_bits_have_no_lower_bits():
    samples = np.random.default_rng(3).integers(0, 4096, (3, 4, 4)).astype(np.uint16)
    data = tiff(samples, photometric=5, alpha=False)
    assert decode(data).size == (4, 3) and inspect(data) is None
    with pytest.raises(ImageError, match="16-bit images of the kind CMYK cannot be scaled by a range"):
        decode(data, white=4095)


def test_the_orientation_of_deep_images_is_applied():
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    samples = np.arange(6, dtype=np.uint16).reshape(2, 3) * 800
    deep, flat = (encode(array, "PNG", exif=exif) for array in (samples, (samples // 16).astype(np.uint8)))
    assert decode(deep, white=4095).size == decode(flat).size == (2, 3)
    colour = png16(np.repeat(samples[:, :, None], 3, axis=2))
    whole = colour[:33] + encode(Image.new("L", (1, 1)), "PNG", exif=exif)[33:].split(b"IDAT")[0][:-4] + colour[33:]
    assert decode(whole, white=4095).size == (2, 3)


def test_the_cards_range_decides():
    data = png16(np.full((8, 8, 1), 4095, np.uint16))
    spec = make_input(8, "L")
    assert pixels(data, spec).max() == 15
    assert pixels(data, make_input(8, "L", range=4095.0)).min() == 255
    assert np.asarray(decode_for(data, make_input(8, "L", range=8190.0))).max() == 127
