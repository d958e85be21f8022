"""The memory that decoding takes, measured in a process of its own, is never more than its header let expect."""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from zoo.artefact.decode import decode

_SIZE = (1601, 1402)
_SPARE = 12 << 20
"""What may be unused of an estimate, beside its share per pixel."""

_TURNED = Image.Exif()
_TURNED[0x0112] = 6

_MEASURE = """
import ctypes, json, pathlib, sys
from zoo.artefact.decode import decode

def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

found = {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data, expected = path.read_bytes(), []
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    white = 4000.0 if path.name.startswith("ranged") else None
    decode(data, white=white, room=lambda count, what: expected.append(count))
    found[path.name] = (expected[0], status("VmHWM") - before)
print(json.dumps(found))
"""


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def deep_png(channels, colour_type):
    width, height = _SIZE

    def chunk(kind, data=b""):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + bytes(2 * channels * width)) * height, 1)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND")


def files():
    """Name -> file: every format, its modes, its ways to store them."""
    width, height = _SIZE
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8))
    rgb, grey, plain = noise.convert("RGB"), noise.convert("L"), Image.new("RGBA", _SIZE, (9, 99, 199, 90))
    palette = grey.convert("P")
    deep = Image.fromarray(np.zeros((height, width), np.uint16))
    whole = {278: height}  # rows per strip
    found = {
        "jpeg-grey": saved(grey, "JPEG"),
        "jpeg-rgb-turned": saved(rgb, "JPEG", exif=_TURNED),
        "jpeg-rgb-progressive-444": saved(rgb, "JPEG", progressive=True, subsampling=0),
        "jpeg-cmyk": saved(noise.convert("CMYK"), "JPEG"),
        "jpeg-cmyk-progressive": saved(noise.convert("CMYK"), "JPEG", progressive=True, exif=_TURNED),
        "mpo": saved(rgb, "MPO", save_all=True, append_images=[rgb.resize((8, 8))]),
        **{
            f"png-{mode}": saved(noise.convert(mode), "PNG", compress_level=1)
            for mode in ("1", "L", "LA", "RGB", "RGBA")
        },
        "png-p-alpha": saved(palette, "PNG", transparency=7),
        "png-rgb-key": saved(rgb, "PNG", transparency=(1, 2, 3), compress_level=1),
        "png-16": saved(deep, "PNG"),
        "ranged-png-16": saved(deep, "PNG"),
        "ranged-png-48": deep_png(3, 2),
        "ranged-png-64": deep_png(4, 6),
        "ranged-png-32": deep_png(2, 4),
        "png-rgba-turned": saved(noise, "PNG", exif=_TURNED, compress_level=1),
        "gif": saved(palette, "GIF"),
        "gif-alpha": saved(palette, "GIF", transparency=7),
        "gif-animated": saved(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
        "webp-rgb": saved(rgb, "WEBP", method=0),
        "webp-rgba-turned": saved(noise, "WEBP", method=0, exif=_TURNED),
        "webp-lossless": saved(noise, "WEBP", lossless=True, method=0),
        "bmp-grey": saved(grey, "BMP"),
        "bmp-rgba": saved(noise, "BMP"),
        **{
            f"tiff-{mode}": saved(noise.convert(mode), "TIFF")
            for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB")
        },
        "tiff-lzw-turned": saved(noise, "TIFF", compression="tiff_lzw", tiffinfo={274: 6}),
        "tiff-one-strip": saved(noise.convert("CMYK"), "TIFF", compression="tiff_adobe_deflate", tiffinfo=whole),
        "tiff-jpeg": saved(rgb.convert("YCbCr"), "TIFF", compression="jpeg"),
        "tiff-16": saved(deep, "TIFF", compression="tiff_adobe_deflate", tiffinfo=whole),
        "ranged-tiff-i": saved(Image.new("I", _SIZE, 7), "TIFF"),
        "ranged-tiff-f": saved(Image.new("F", _SIZE, 7.0), "TIFF"),
        "ppm": saved(rgb, "PPM"),
        "pbm": saved(grey.convert("1"), "PPM"),
        "ppm-1000": b"P6 %d %d 1000\n" % _SIZE + bytes(6 * width * height),
        "pgm-65535": b"P5 %d %d 65535\n" % _SIZE + bytes(2 * width * height),
    }
    if features.check("avif"):
        found |= {
            "avif-rgb": saved(plain.convert("RGB"), "AVIF", speed=10),
            "avif-rgba-444": saved(plain, "AVIF", speed=10, subsampling="4:4:4"),
        }
    return found


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be measured on Linux only")
def test_no_image_takes_more_than_its_header_lets_expect(tmp_path):
    made = files()
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run([sys.executable, "-c", _MEASURE, tmp_path], capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)
    assert measured.keys() == made.keys()
    assert {name: pair for name, pair in measured.items() if pair[1] > pair[0]} == {}
    # Nor is more reserved than about three times what is needed.
    assert {name: pair for name, pair in measured.items() if pair[0] > 3.5 * pair[1] + _SPARE} == {}


def test_a_tile_larger_than_the_image_is_reserved_for():
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "TIFF", compression="tiff_lzw")
    needed = []
    decode(stream.getvalue(), room=lambda count, what: needed.append((count, what)))
    image = Image.open(stream)
    image.tag_v2[322], image.tag_v2[323] = 20_000, 10_000
    from zoo.artefact.decode_memory import bytes_to_decode

    assert needed[0][1] == "TIFF image of 64 x 64 pixels (RGB)"
    assert bytes_to_decode(image, 0, ranged=False, coefficients=0) > 4 * 200_000_000 > 10 * needed[0][0]
