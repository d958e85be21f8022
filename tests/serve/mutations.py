"""Image files as they should not be: mutated bytes, and headers that claim more than there is.

Everything follows from a seed, so that a failure is found again by its number.
"""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

__all__ = ["FORMATS", "bombs", "good", "mutate"]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


@functools.cache
def good(form: str, seed: int = 0) -> bytes:
    """A file of 20 x 16 random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def mutate(seed: int) -> bytes:
    """A file that went wrong in one to three ways."""
    rng = random.Random(seed)
    data = good(rng.choice(FORMATS), rng.randrange(4))
    for _ in range(rng.randint(1, 3)):
        data = rng.choice(_WAYS)(rng, data)
    return data


def _flip_bits(rng: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(rng.randint(1, 8) if found else 0):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _flip_header(rng: random.Random, data: bytes) -> bytes:
    return _flip_bits(rng, data[:40]) + data[40:]


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 4, 37, 1000))) + data[at:]


def _insert_chunk(rng: random.Random, data: bytes) -> bytes:
    kind = rng.choice(
        (b"IHDR", b"IDAT", b"zTXt", b"iCCP", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"eXIf", b"EXIF", b"abCd")
    )
    content = rng.randbytes(rng.choice((0, 4, 13, 200)))
    at = rng.choice((8, 33, max(0, len(data) - 12), rng.randrange(len(data) + 1)))
    return data[:at] + _png_chunk(kind, content) + data[at:]


def _remove(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.randint(1, 64) :]


def _overwrite(rng: random.Random, data: bytes) -> bytes:
    at, value = (
        rng.randrange(len(data) + 1),
        rng.choice((b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff")),
    )
    return data[:at] + value + data[at + 4 :]


def _other_signature(rng: random.Random, data: bytes) -> bytes:
    return good(rng.choice(FORMATS))[: rng.randint(2, 16)] + data[rng.randint(2, 16) :]


def _twice(rng: random.Random, data: bytes) -> bytes:
    return data + good(rng.choice(FORMATS))


_WAYS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flip_bits,
    _flip_header,
    _truncate,
    _insert,
    _insert_chunk,
    _remove,
    _overwrite,
    _other_signature,
    _twice,
)


@functools.cache
def bombs() -> dict[str, bytes]:
    """Small files that claim, or unpack to, far more pixels or bytes than a server should hold."""
    big = 50_000
    row = zlib.compress(bytes(big * 3 + 1) * 200, 9)
    found = {
        "png": _png(big, big, row),
        "png, most": _png(2**31 - 1, 2**31 - 1, row),
        "png, high": _png(1, 2**31 - 1, row),
        "png, flat": _png(30_000_000, 1, row),
        "png, text": _png(
            20, 16, zlib.compress(bytes(16 * 61)), (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26), 9))
        ),
        "png, profile": _png(
            20, 16, zlib.compress(bytes(16 * 61)), (b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 26), 9))
        ),
        "png, more data than pixels": _png(20, 16, zlib.compress(bytes(1 << 26), 9)),
        "gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + good("GIF")[10:],
        "gif, frame": _gif_frame(65535, 65535),
        "webp, canvas": _webp(b"VP8X", struct.pack("<I", 0) + (2**14).to_bytes(3, "little") * 2),
        "webp, most": _webp(b"VP8X", struct.pack("<I", 0) + b"\xff" * 6),
        "webp, lossless": _webp(b"VP8L", b"\x2f" + b"\xff\xff\xff\x0f" + bytes(64)),
        "bmp": good("BMP")[:18] + struct.pack("<ii", big, big) + good("BMP")[26:],
        "bmp, negative": good("BMP")[:18] + struct.pack("<ii", -big, -(2**31)) + good("BMP")[26:],
        "ppm": b"P6 %d %d 255\n" % (big, big) + bytes(100),
        "ppm, digits": b"P6 " + b"9" * 5000 + b" 1 255\n",
        "jpeg": _jpeg(65535, 65535),
        "tiff": _tiff(2**31, 2**31),
    }
    assert all(len(data) < 1 << 20 for data in found.values())
    return found


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, content) for kind, content in parts)


def _gif_frame(width: int, height: int) -> bytes:
    data = good("GIF")
    at = data.index(b"\x2c", 13 + 3 * 256)  # behind the header and 256 colours
    return data[: at + 5] + struct.pack("<HH", width, height) + data[at + 9 :]


def _webp(kind: bytes, content: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def _jpeg(width: int, height: int) -> bytes:
    data = good("JPEG")
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def _tiff(width: int, height: int) -> bytes:
    tags = ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 100))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value & 0xFFFFFFFF) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)
