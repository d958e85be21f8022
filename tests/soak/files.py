"""Image files that are small, or of little image, and costly to decode."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

__all__ = ["claims", "floods", "png", "scans"]

_COLOUR_TYPES = {1: 0, 3: 2}
"""Of PNG (third edition, table 8), by the number of channels."""


def claims(edge: int) -> dict[str, bytes]:
    """Files whose headers claim an image of `edge` x `edge`, by their format."""
    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    claiming = (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + _chunk(b"IEND")
    )
    gif = bytearray(_saved("GIF"))
    gif[6:10] = struct.pack("<HH", edge, edge)
    # The canvas of an extended WebP file: 24 bits each of width - 1 and height - 1 (WebP container specification).
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 4), dtype=np.uint8)).save(stream, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    webp = bytearray(stream.getvalue())
    place = webp.index(b"VP8X") + 12
    webp[place : place + 6] = 2 * (edge - 1).to_bytes(3, "little")
    return {"png": claiming, "gif": bytes(gif), "webp": bytes(webp)}


def png(width: int, height: int, *, bits: int = 8, channels: int = 3) -> bytes:
    """A whole PNG file of black pixels, grey or RGB; its pixels are never in memory at once."""
    packer, parts = zlib.compressobj(9), []
    row = bytes(1 + width * channels * bits // 8)
    for _ in range(height):
        parts.append(packer.compress(row))
    data = b"".join([*parts, packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, bits, _COLOUR_TYPES[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND")


def scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG file whose last scan comes `count` times; each has to be gone through."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    place = data.rindex(b"\xff\xda")
    return data[:place] + data[place:-2] * count + data[-2:]


def floods(size: int) -> dict[str, bytes]:
    """Files of 8 x 8 pixels after `size` bytes of tiny comments, by their format."""
    whole_png, gif, jpeg = png(8, 8), _saved("GIF"), _saved("JPEG")
    text = _chunk(b"tEXt", b"a\0b")
    # After the header of 13 bytes and the table of colours, whose size is in the lowest three bits of byte 10.
    place = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    return {
        "png": whole_png[:33] + text * (size // len(text)) + whole_png[33:],
        "gif": gif[:place] + b"\x21\xfe\x01a\0" * (size // 5) + gif[place:],
        "jpeg": jpeg[:2] + b"\xff\xfe\0\x03a" * (size // 5) + jpeg[2:],
    }


def _saved(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
