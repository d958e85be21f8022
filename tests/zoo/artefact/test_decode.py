"""Every kind of sample, orientation and header, and what is refused before it is decoded."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.zoo.factories import encode, picture
from zoo.artefact.decode import FORMATS, WHOLE_SIZE, decode, sniff
from zoo.base.errors import ImageError, ImageFormatError, ImageSizeError

KINDS = {kind: encode(picture(1, 9, 7), kind) for kind in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_known_by_their_first_bytes(kind):
    assert set(FORMATS) - {"HEIF"} == {"AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"}
    assert sniff(KINDS[kind]) == kind
    assert decode(KINDS[kind], formats=(kind,)).size == (7, 9)
    others = tuple(name for name in FORMATS if name != kind)
    accepted = ", ".join(others)
    with pytest.raises(ImageFormatError, match=rf"{kind} images are not accepted \(accepted: {accepted}\)"):
        decode(KINDS[kind], formats=others)


@pytest.mark.parametrize("data", [b"", b"\0" * 50, b"RIFF\0\0\0\0WAVEfmt ", b"P7 not one of ours", b"PNG"])
def test_what_is_no_image(data):
    assert sniff(data) is None
    with pytest.raises(ImageFormatError, match="empty" if not data else "not an image in a supported format"):
        decode(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"<svg xmlns=''/>", "an SVG drawing"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x --><svg>", "an SVG drawing"),
        (b"<?xml version='1.0'?><kml>", "an XML document"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript file"),
        (b"\xff\x0a\xfa\x1f", "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (b"\0\0\0\x20ftypmp42\0\0\0\0mp42isom", "a video or another ISO media file"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "a QuickTime video"),
        (b"\0\0\1\0\1\0", "an icon (ICO)"),
        (b"8BPS\0\1", "a Photoshop document (PSD)"),
        (b"PK\3\4\x14", "a ZIP archive"),
    ],
)
def test_a_refused_format_is_named(data, name):
    with pytest.raises(
        ImageFormatError, match=rf"it is {re.escape(name)}, which is not accepted \(accepted: .*save it as"
    ):
        decode(data)


def test_a_damaged_header_is_no_question_of_the_format():
    with pytest.raises(ImageError, match="its GIF header is damaged") as caught:
        decode(b"GIF89a\1")
    assert type(caught.value) is ImageError


def _patched(data: bytes, offset: int, layout: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, *values)
    return bytes(changed)


def _tagged(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF file with another value (32 bits, inline) of a tag in its first directory."""
    start = struct.unpack_from("<I", data, 4)[0]
    for place in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if struct.unpack_from("<H", data, place)[0] == tag:
            return _patched(data, place, "<HHII", tag, 4, 1, value)
    raise KeyError(tag)


def _claiming(kind: str, width: int, height: int) -> bytes:
    """A file of a few hundred bytes whose header says that it is `width` x `height` pixels large."""
    data = KINDS[kind]
    match kind:
        case "AVIF":
            # ISO/IEC 23008-12, 6.5.3; libavif takes more for damage.
            return _patched(data, data.index(b"ispe") + 8, ">II", min(width, 16384), min(height, 16384))
        case "BMP":
            return _patched(data, 18, "<ii", width, height)
        case "GIF":
            return _patched(data, 6, "<HH", width, height)
        case "JPEG":
            return _patched(data, data.index(b"\xff\xc0") + 5, ">HH", height, width)
        case "PNG":
            header = _patched(data[12:29], 4, ">II", width, height)
            return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        case "PPM":
            return data.replace(b"7 9", b"%d %d" % (width, height), 1)
        case "TIFF":
            return _tagged(_tagged(data, 256, width), 257, height)
        case _:
            # RFC 6386, section 9.1: 14 bits each.
            return _patched(data, 26, "<HH", min(width, 16383), min(height, 16383))


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "HEIF"])  # libheif takes it for damage
@pytest.mark.parametrize("size", [(300, 200), (9_000, 10_000), (60_000, 60_000)])
def test_size_is_refused_from_the_header(kind, size):
    with pytest.raises(ImageSizeError, match=r"pixels"):
        decode(_claiming(kind, *size), max_pixels=59_999)


@pytest.mark.parametrize("frames", [1, 3])
def test_of_a_file_of_several_jpeg_images_the_first_counts(frames):
    images = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "lime")[:frames]]
    data = encode(images[0], "MPO", save_all=True, append_images=images[1:])
    assert sniff(data) == "JPEG"
    assert decode(data).getpixel((5, 5)) == pytest.approx((254, 0, 0), abs=3)
    assert decode(data, least_edge=8).size == (20, 15)


@pytest.mark.parametrize("brands", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heix", b"msf1\0\0\0\0hevc"])
def test_images_of_telephones_are_known_and_named(brands):
    data = struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(40)
    assert sniff(data) == "HEIF"
    with pytest.raises(ImageFormatError, match=r"HEIF images are not accepted \(accepted: JPEG\)"):
        decode(data, formats=("JPEG",))


@pytest.mark.parametrize("data", [b"\0\0\0\x18ftypisom\0\0\0\0isommp42", b"\0\0\0\x08ftyp", b"\xff\xff\xff\xffftyp"])
def test_other_files_of_boxes_are_no_images(data):
    assert sniff(data) is None


def test_a_frame_larger_than_its_canvas_counts():
    data = KINDS["GIF"]
    frame = data.index(b"\x2c", 13 + 3 * (2 << (data[10] & 7)))
    with pytest.raises(ImageSizeError, match="300 x 200 pixels"):
        decode(_patched(data, frame + 5, "<HH", 300, 200), max_pixels=59_999)
    assert decode(_patched(data, 6, "<HH", 1, 1)).size == (7, 9)


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_compressed_text_does_not_blow_up(name):
    chunk = name + b"k\0\0" + zlib.compress(bytes(8 << 20))
    data = KINDS["PNG"]
    bomb = data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    with pytest.raises(ImageError, match="Decompressed data too large"):
        decode(bomb)


def _rle_bmp(edge: int) -> bytes:
    rows = (b"\1\5" * edge + b"\0\0") * edge + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, edge, edge, 1, 8, 1, len(rows), 0, 0, 256, 0)
    palette = b"".join(bytes((grey, grey, grey, 0)) for grey in range(256))
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(rows), 0, 0, 54 + 1024) + header + palette + rows


def test_slow_encodings_are_read_only_in_small():
    assert np.asarray(decode(_rle_bmp(8))).tolist() == [[[5, 5, 5]] * 8] * 8
    assert np.asarray(decode(b"P3 # a comment\n2 1 100\n50 0 100 0 100 7\n")).tolist() == [
        [[128, 0, 255], [0, 255, 18]]
    ]
    for data in (_rle_bmp(520), b"P2 400 700 255\n" + b"1 " * 280_000):
        with pytest.raises(ImageSizeError, match="at most 524288 are accepted of these; save it as PNG"):
            decode(data)


def _pillows(data: bytes, mode: str) -> Image.Image:
    return Image.open(BytesIO(data)).convert(mode)


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 7, 100, 254, 255]), st.booleans())
def test_ppm_of_any_largest_value_is_pillows(seed, height, width, most, colour):
    array = np.minimum(picture(seed, height, width, 3 if colour else None), min(most + 1, 255)).astype(np.uint8)
    data = b"P%d %d %d %d\n" % (6 if colour else 5, width, height, most) + array.tobytes()
    mode = "RGB" if colour else "L"
    assert decode(data, colour=mode).tobytes() == _pillows(data, mode).tobytes()
    with pytest.raises(ImageError, match="cannot decode"):
        decode(data[:-1])


def test_ppm_of_16_bits_is_scaled():
    levels = struct.pack(">3H", 0, 1000, 2000)
    assert np.asarray(decode(b"P6 1 1 2000\n" + levels)).tolist() == [[[0, 128, 255]]]
    assert np.asarray(decode(b"P5 3 1 2000\n" + levels, colour="L")).tolist() == [[0, 127, 255]]


LEVELS = np.array([[0, 255, 256, 257, 32768, 65279, 65280, 65535]], np.uint16)


def _png16(samples: np.ndarray, kind: int) -> bytes:
    """A PNG file of 16-bit samples [H, W, C]; `kind` is its colour type: 2 RGB, 4 grey and alpha, 6 RGBA."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bits_per_channel_lose_the_lower_byte():
    colour = np.repeat(LEVELS[:, :, None], 3, axis=2)
    wanted = [[0, 0, 1, 1, 128, 254, 255, 255]]
    assert np.asarray(decode(_png16(colour, 2)))[:, :, 1].tolist() == wanted
    opaque = np.full_like(LEVELS, 65535)[:, :, None]
    assert np.asarray(decode(_png16(np.dstack((colour, opaque)), 6)))[:, :, 2].tolist() == wanted
    grey = np.dstack((LEVELS[:, :, None], opaque * 0))
    assert np.asarray(decode(_png16(grey, 4), colour="L")).tolist() == [[255] * 8]


def test_one_channel_of_16_bits_is_scaled_in_every_byte_order():
    wanted = (LEVELS // 257).tolist()
    for kind in ("PNG", "TIFF"):
        assert np.asarray(decode(encode(LEVELS, kind), colour="L")).tolist() == wanted
    big = b"MM\0*" + struct.pack(">IH", 8, 8)
    tags = [(256, 8), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8 + 2 + 96 + 4), (278, 1), (279, 16)]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    assert np.asarray(decode(big + entries + bytes(4) + LEVELS.astype(">u2").tobytes(), colour="L")).tolist() == wanted


def test_tiff_of_16_bits_where_zero_is_white():
    data = _tagged(encode(LEVELS, "TIFF"), 262, 0)
    assert np.asarray(decode(data, colour="L")).tolist() == ((65535 - LEVELS) // 257).tolist()


def test_tiff_of_12_bits_is_scaled():
    samples = np.array([0, 4095, 2048, 15])
    packed = bytes([samples[0] >> 4, (samples[0] & 15) << 4 | samples[1] >> 8, samples[1] & 255])
    packed += bytes([samples[2] >> 4, (samples[2] & 15) << 4 | samples[3] >> 8, samples[3] & 255])
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 96 + 4), (278, 1), (279, 6)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, 8) + entries + bytes(4) + packed
    assert np.asarray(decode(data, colour="L")).tolist() == [[0, 255, 127, 0]]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_samples_without_a_range_are_refused(kind):
    with pytest.raises(ImageError, match="no defined brightness range"):
        decode(encode(np.arange(6, dtype=kind).reshape(2, 3), "TIFF"))


def _ycck(luma: int, blue: int, red: int, black: int) -> bytes:
    """A JPEG file of one colour in four components as stored, marked by Adobe as YCCK."""
    # Pillow stores CMYK inverted.
    ink = Image.new("CMYK", (16, 16), tuple(255 - value for value in (luma, blue, red, black)))
    data = encode(ink, "JPEG", quality=100)
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    return data[:transform] + b"\2" + data[transform + 1 :]


def test_cmyk_and_ycck_jpeg():
    for ink, wanted in (((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0), ((255, 255, 255, 0), 0)):
        data = encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
        assert np.asarray(decode(data))[8, 8].tolist() == pytest.approx([wanted] * 3, abs=2)
    # ITU-T T.871: Y = 128 and no chroma is middle grey; K = 255 stored inverted is no black.
    assert np.asarray(decode(_ycck(128, 128, 128, 255)))[8, 8].tolist() == pytest.approx([128] * 3, abs=2)
    # Y, Cb, Cr of pure red, of which Adobe stores the opposite: cyan.
    assert np.asarray(decode(_ycck(76, 85, 255, 255)))[8, 8].tolist() == pytest.approx([0, 255, 255], abs=3)
    assert np.asarray(decode(_ycck(76, 85, 255, 0)))[8, 8].tolist() == pytest.approx([0, 0, 0], abs=3)


def test_progressive_and_truncated_jpeg():
    array = np.kron(picture(2, 8, 8), np.ones((16, 16, 1), np.uint8))
    plain, progressive = (encode(array, "JPEG", quality=95, progressive=flag) for flag in (False, True))
    assert b"\xff\xc2" in progressive
    assert np.abs(np.asarray(decode(plain), int) - np.asarray(decode(progressive), int)).max() <= 2
    for data in (plain, progressive):
        with pytest.raises(ImageError, match="runcated"):
            decode(data[: len(data) // 2])


@pytest.mark.parametrize("first", [0, 1])
def test_first_frame_of_an_animated_png(first):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    data = encode(frames[first], "PNG", save_all=True, append_images=[frames[1 - first]], duration=50)
    assert b"fcTL" in data
    assert np.asarray(decode(data))[0, 0].tolist() == [[255, 0, 0], [0, 0, 255]][first]


def test_colour_profiles_are_ignored():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    array = picture(3, 5, 6)
    assert np.array_equal(np.asarray(decode(encode(array, "PNG", icc_profile=profile))), array)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_pillows_own(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(4, 24, 16), kind, exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    assert np.array_equal(np.asarray(decode(data)), np.asarray(wanted))
    # A baseline tag of TIFF itself, which Pillow obeys while it loads.
    turned = orientation > 4 and kind == "TIFF"
    assert decode(data, exif=False).size == ((24, 16) if turned else (16, 24))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist_change_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = picture(5, 6, 4)
    assert np.array_equal(np.asarray(decode(encode(array, "PNG", exif=exif))), array)


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0rubbish!", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_a_damaged_exif_block_is_ignored(block):
    data = encode(picture(6, 6, 4), "JPEG")
    damaged = data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
    with warnings.catch_warnings():
        # What Pillow says about it.
        warnings.simplefilter("ignore")
        assert np.array_equal(np.asarray(decode(damaged)), np.asarray(decode(data)))


MODES: dict[str, list[str]] = {}
MODES |= {"PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]}
MODES |= {"TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]}
MODES |= {"GIF": ["1", "L", "P", "RGB", "RGBA"], "WEBP": ["RGB", "RGBA", "L"], "BMP": ["1", "L", "P", "RGB"]}
MODES |= {"PPM": ["1", "L", "RGB", "I;16"], "JPEG": ["1", "L", "RGB", "CMYK"], "AVIF": ["L", "RGB", "RGBA"]}


def _as_mode(array: np.ndarray, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(array[:, :, 0].astype(np.uint16) * 257)
    if mode == "CMYK":
        return Image.frombytes("CMYK", array.shape[1::-1], array.tobytes())
    return Image.fromarray(array).convert(mode)


@given(
    st.sampled_from([(kind, mode) for kind, modes in MODES.items() for mode in modes]),
    st.integers(0, 999),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from(["RGB", "L"]),
)
def test_every_mode_of_every_format(chosen, seed, height, width, colour):
    assert set(MODES) == set(FORMATS) - {"HEIF"}
    kind, mode = chosen
    image = _as_mode(picture(seed, height, width, 4), mode)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = decode(encode(image, kind, **options), colour=colour)
    assert (found.mode, found.size) == (colour, (width, height))
    if kind in ("AVIF", "JPEG"):
        return
    if mode == "I;16":
        wanted = np.asarray(image) // 257
        assert np.array_equal(np.asarray(found.convert("L")), wanted)
    elif kind != "GIF" and "A" not in mode:
        assert found.tobytes() == image.convert(colour).tobytes()
    elif kind != "GIF":
        white = Image.new("RGBA", image.size, "white")
        assert found.tobytes() == Image.alpha_composite(white, image.convert("RGBA")).convert(colour).tobytes()


def test_large_jpeg_files_come_out_small_only_on_request():
    array = np.kron(picture(7, 40, 60), np.ones((16, 16, 1), np.uint8))
    jpeg, png = encode(array, "JPEG"), encode(array, "PNG")
    assert decode(jpeg).size == decode(png, least_edge=1).size == (960, 640)
    sizes = {least: decode(jpeg, least_edge=least).size for least in (641, 640, 321, 320, 160, 80, 10)}
    assert sizes == {
        641: (960, 640),
        640: (960, 640),
        321: (960, 640),
        320: (480, 320),
        160: (240, 160),
        80: (120, 80),
        10: (120, 80),
    }
    with pytest.raises(ImageSizeError, match="960 x 640 pixels"):
        decode(jpeg, least_edge=80, max_pixels=960 * 640 - 1)


def test_huge_baseline_jpeg_files_come_out_small():
    array = np.kron(picture(7, 40, 60), np.ones((16, 16, 1), np.uint8))
    for options in ({}, {"subsampling": 0}, {"restart_marker_rows": 1}):
        jpeg = encode(array, "JPEG", **options)
        assert decode(jpeg, huge_edge=80).size == (960, 640)
        small = decode(jpeg, huge_edge=80, max_pixels=60_000)
        assert small.size == (120, 80) and small.info[WHOLE_SIZE] == (960, 640)
        assert decode(jpeg, huge_edge=320, max_pixels=200_000).size == (480, 320)
        for edge in (640, 200):
            with pytest.raises(ImageSizeError, match=r"at most 60000 are accepted; save it smaller"):
                decode(jpeg, huge_edge=edge, max_pixels=60_000)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encode(array, "JPEG", exif=exif), huge_edge=80, max_pixels=60_000)
    assert turned.size == (80, 120) and turned.info[WHOLE_SIZE] == (640, 960)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM"])
def test_huge_images_that_cannot_be_decoded_small_are_refused(kind):
    with pytest.raises(ImageSizeError, match=r"960 x 640 pixels, at most 614399 are accepted; .* as baseline JPEG"):
        decode(encode(np.zeros((640, 960), np.uint8), kind), huge_edge=1, max_pixels=960 * 640 - 1)


def test_huge_jpeg_files_that_want_much_memory_or_time_are_refused():
    array = np.zeros((640, 960), np.uint8)
    with pytest.raises(ImageSizeError, match="960 x 640 pixels, at most 100000 are accepted"):
        decode(encode(array, "JPEG", progressive=True), huge_edge=1, max_pixels=100_000)
    assert decode(encode(array, "JPEG"), huge_edge=1, max_pixels=960 * 640 // 16).size == (120, 80)
    with pytest.raises(ImageSizeError, match="960 x 640 pixels, at most 614384 are accepted"):
        decode(encode(array, "JPEG"), huge_edge=1, max_pixels=960 * 640 // 16 - 1)


_HUGE = """
import io, resource, sys
from PIL import Image
from zoo.artefact.decode import decode, inspect
data = sys.stdin.buffer.read()
most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = most()
print(inspect(data), decode(data, huge_edge=512, max_pixels=25_000_000).size, most() - before)
"""


def test_200_megapixels_take_little_memory():
    data = encode(Image.new("L", (16384, 12288), 99), "JPEG")
    answer = subprocess.run([sys.executable, "-c", _HUGE], input=data, capture_output=True, check=True).stdout.split()
    assert answer[:3] == [b"None", b"(2048,", b"1536)"]
    # In KiB; decoded whole it is 200 MB at least.
    assert int(answer[3]) < 60_000


def test_tiff_in_compressions_of_libtiff():
    array = picture(8, 20, 30)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
        assert np.array_equal(np.asarray(decode(encode(array, "TIFF", compression=compression))), array)


def _segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def _progressive(edge: int, extra: int, between: bytes = b"", components: int = 1) -> bytes:
    """A progressive JPEG file of one grey whose last scan is there `extra` times more."""
    image = Image.new("L" if components == 1 else "RGB", (edge, edge), 128 if components == 1 else (9, 99, 199))
    data = encode(image, "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + (between + last) * extra + b"\xff\xd9"


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("between", [b"", _segment(0xFE, b"\xff\xd9"), b"\0\xff\xff"])
def test_progressive_jpeg_of_too_many_scans(components, between):
    honest = _progressive(16, 0, components=components)
    first = honest.count(b"\xff\xda")
    assert 6 <= first <= 10
    most = _progressive(16, 100 - first, between, components)
    assert np.array_equal(np.asarray(decode(most)), np.asarray(decode(honest)))
    with pytest.raises(ImageSizeError, match="the JPEG image of 16 x 16 pixels has more than 100 scans"):
        decode(_progressive(16, 101 - first, between, components))


def test_fewer_scans_are_accepted_of_larger_jpeg_files():
    bomb = _progressive(8, 94)
    frame = bomb.index(b"\xff\xc2") + 5
    for edge, most in ((5000, 40), (9000, 20)):
        with pytest.raises(ImageSizeError, match=f"{edge} x {edge} pixels has more than {most} scans"):
            decode(_patched(bomb, frame, ">HH", edge, edge))


def test_scans_are_not_counted_beyond_the_end_of_a_jpeg_file():
    # A video after a phone's photo, say.
    data = _progressive(16, 0) + b"\xff\xda\0\2" * 5_000
    assert decode(data).size == (16, 16)


def test_segments_between_scans_are_limited():
    with pytest.raises(ImageSizeError, match="more than 2000 segments"):
        decode(_progressive(16, 1, _segment(0xFE, b"") * 3_000))


def test_a_sequential_jpeg_may_have_a_scan_per_component():
    data = encode(Image.new("CMYK", (16, 16), (1, 2, 3, 4)), "JPEG")
    scan = data.index(b"\xff\xda")
    # A scan of the first component only, again and again, where the decoder expects four.
    bomb = data[:scan] + _segment(0xDA, b"\1" + data[scan + 5 : scan + 7] + b"\0\x3f\0") * 200 + b"\xff\xd9"
    with pytest.raises(ImageSizeError, match="more than 100 scans"):
        decode(bomb)


def test_photos_of_much_metadata_pass():
    data = encode(picture(9, 6, 4), "JPEG")
    blocks = _segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"x" * 900) * 700
    blocks += _segment(0xED, b"Photoshop 3.0\0" + (b"8BIM\4\4" + bytes(6)) * 200) * 20
    blocks += _segment(0xE1, b"Exif\0\0" + b"\xff\xda" * 500) + b"\xff" * 200 + _segment(0xFE, b"a" * 65_000)
    with warnings.catch_warnings():
        # Under pytest; see test_pillows_warnings_are_silenced.
        warnings.simplefilter("ignore")
        assert np.array_equal(np.asarray(decode(data[:2] + blocks + data[2:])), np.asarray(decode(data)))


_TOO_MUCH = "too much before its first scan"


@pytest.mark.parametrize(
    ("junk", "message"),
    [
        (b"\xff" * 70_000, _TOO_MUCH),
        (b"\xff\0" * 40_000, _TOO_MUCH),
        ((b"\xff" * 1_000 + _segment(0xE5, b"")) * 70, _TOO_MUCH),
        (b"\xff\xe5\0\2" * 2_000, "more than 2000 segments"),
        (b"\xff\xd0" * 2_000, "more than 2000 segments"),
        (_segment(0xE1, b"Exif\0\0" + bytes(99)) * 101, _TOO_MUCH),
        (_segment(0xED, b"Photoshop 3.0\0" + (b"8BIM" + bytes(8)) * 5_000) * 3, _TOO_MUCH),
        (_segment(0xDB, (b"\0" + b"\1" * 64) * 1_000) * 11, _TOO_MUCH),
        (_segment(0xC0, b"\x08\0\1\0\1\3" + b"\1\x11\0" * 20_000), _TOO_MUCH),
    ],
)
def test_jpeg_headers_that_take_long_are_refused(junk, message):
    data = KINDS["JPEG"]
    with pytest.raises(ImageSizeError, match=message):
        decode(data[:2] + junk + data[2:])


def _with_chunks(chunk: bytes, count: int) -> bytes:
    whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return KINDS["PNG"][:33] + whole * count + KINDS["PNG"][33:]


def _with_extension(blocks: bytes) -> bytes:
    data = KINDS["GIF"]
    start = 13 + 3 * (2 << (data[10] & 7))
    return data[:start] + blocks + data[start:]


@pytest.mark.parametrize(
    "make",
    [
        lambda count: _with_chunks(b"zzZz", count // 4),
        lambda count: _with_chunks(b"tEXta\0", count // 4),
        lambda count: _with_extension(b"!\xfe\1a\0" * (count // 5)),
        lambda count: _with_extension(b"!\xfe" + b"\1a" * (count // 2) + b"\0"),
        lambda count: KINDS["PPM"].replace(b"\n", b"\n#" + b"a" * count + b"\n", 1),
    ],
)
def test_metadata_in_too_many_pieces_is_refused(make):
    # As many reads as an eighth of the limit, and more than it.
    assert decode(make(1 << 14)).size == (7, 9)
    with pytest.raises(ImageSizeError, match="takes more than 131072 steps to read"):
        decode(make(1 << 18))


def test_large_run_length_encoded_files_are_no_metadata():
    data = _rle_bmp(500)
    assert len(data) > 1 << 18
    assert np.asarray(decode(data, colour="L")).tolist() == [[5] * 500] * 500


@pytest.mark.parametrize("shape", [(1500, 1000), (1, 1_500_000), (1_500_000, 1)])
def test_16_bits_are_converted_in_bands(shape):
    levels = (np.arange(1_500_000, dtype=np.uint32) * 7 % 65536).astype(np.uint16).reshape(shape)
    data = b"P5 %d %d 65535\n" % shape[::-1] + levels.astype(">u2").tobytes()
    assert np.array_equal(np.asarray(decode(data, colour="L")), levels // 257)
    if shape[0] < 65536:
        assert np.array_equal(np.asarray(decode(encode(levels, "PNG"), colour="L")), levels // 257)


def test_16_bits_are_converted_in_little_memory():
    data = encode(np.zeros((3000, 3000), np.uint16), "PNG")
    tracemalloc.start()
    try:
        decode(data, colour="L")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Of numpy and of bytes: one a pixel, and the bands.
    assert peak < 4 * 9_000_000


def test_pillows_warnings_are_silenced():
    # Instead of the planar configuration, whose default it is, a tag of a gibibyte.
    data = _tagged(KINDS["TIFF"], 284, 1)
    data = data.replace(struct.pack("<HHII", 284, 4, 1, 1), struct.pack("<HHII", 284, 7, 1 << 30, 8))
    with pytest.raises(ImageError, match="Tag data larger than file"):
        decode(data)
    script = "import sys, zoo.artefact.decode; print(zoo.artefact.decode.decode(sys.stdin.buffer.read()).size)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], input=data, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"(7, 9)\n", b"")
