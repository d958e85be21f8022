"""From a file's bytes to upright 8-bit pixels: which formats, which limits, what becomes of every kind of sample."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, UnidentifiedImageError, features

from zoo.artefact.decode_memory import WITH_ALPHA, bytes_to_decode
from zoo.artefact.samples import SIXTEEN, Depth, colours, deep_colours, looked_up, one_channel, to_8_bits
from zoo.base.errors import ImageError, ImageFormatError, ImageSizeError, PocketzooError

__all__ = ["FORMATS", "MAX_PIXELS", "SUFFIXES", "UNREAD", "WHOLE_SIZE", "Room", "decode", "inspect", "sniff"]

Room = Callable[[int, str], None]

_SUFFIXES = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heif", ".hif"),
    # MPO: a JPEG file with further images behind the first, as stereo cameras and telephones write them.
    "JPEG": (".jfif", ".jif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pjpeg"),
    "PNG": (".apng", ".png"),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
_HERE = {"AVIF": bool(features.check("avif")), "HEIF": importlib.util.find_spec("pillow_heif") is not None}
"""Whether formats are read that depend on how Pillow was built, or on the package pillow-heif."""

FORMATS = tuple(name for name in _SUFFIXES if _HERE.get(name, True))
"""Pillow's names of the formats that are decoded; the others (EPS above all) are refused."""

SUFFIXES = frozenset(suffix for name in FORMATS for suffix in _SUFFIXES[name])
"""By which files of these formats are known in a folder."""

_OTHERS = (
    *(".arw", ".cr2", ".cr3", ".dng", ".eps", ".exr", ".hdr", ".ico", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl"),
    *(".nef", ".orf", ".pcx", ".psd", ".raf", ".rw2", ".svg", ".tga", ".xcf"),
)
UNREAD = (
    dict.fromkeys(_OTHERS, "save them as JPEG, PNG or WebP")
    | dict.fromkeys(set(_SUFFIXES["AVIF"]) - SUFFIXES, "install a Pillow that reads AVIF, or save them as JPEG")
    | dict.fromkeys(set(_SUFFIXES["HEIF"]) - SUFFIXES, "pip install pillow-heif reads them, or save them as JPEG")
)
"""Suffix of images that are not decoded here -> the remedy."""

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs: a quarter of a gibibyte at three bytes per pixel."""

WHOLE_SIZE = (-1, -1)
"""Key of an image's `info` for the (width, height) in the file, upright, where least_edge was given for a JPEG file.

No text, because a PNG file can set any text key.
"""

_HUGE = 16
"""A JPEG file of so many times the allowed pixels may be decoded small: to read on to each of them still takes time."""

_SMALLER = "smaller (or as baseline JPEG, which may be larger)"

_SLOW_BYTES = 1 << 19
_SLOW_CODECS = {"bmp_rle": "run-length encoded BMP", "ppm_plain": "PPM in decimal text"}
"""What Pillow 13 decodes in Python: a third of a microsecond a byte, in which no other thread runs."""

_MOST_READS = 1 << 17
"""Reads of a file other than JPEG, each a step of Pillow's Python: a tenth of a second, with the lock held.

A PNG file of 20 MB in chunks of 2 kB takes a quarter of them, a comment before a PPM file's size one a byte.
"""

_MOST_SEGMENTS, _MOST_TABLES, _MOST_EXIF, _MOST_JUNK = 2_000, 10_000, 100, 1 << 16
"""Of a JPEG file: segments before the first scan, and after it; entries in segments that Pillow takes apart; segments
of EXIF, all of which it copies for each further one; bytes before the first scan that belong to no segment."""

_FEW_SCANS, _MANY_SCANS, _SCANNED_PIXELS = 20, 100, 10**9
"""Each scan of a JPEG file costs a pass over all of its pixels, even where it takes 80 bytes of the file.

Encoders write 10 (libjpeg) to about 15 (mozjpeg). A thousand megapixels, about a third of a second, are allowed beyond
_FEW_SCANS, which pass at any size.
"""

_MARKER = re.compile(rb"\xff([^\x00\xff])")
_MARKER_IN_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
"""ITU-T T.81, B.1.1: two bytes; in coded data, 0xff precedes 0 (stuffing) and restart markers too."""
_EXIF, _PHOTOSHOP, _END, _SCAN = 0xE1, 0xED, 0xD9, 0xDA
_ALONE = frozenset((0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))
"""Markers that Pillow takes for ones without a length (ITU-T T.81, table B.1)."""
_TAKEN_APART = {0xDB: 65, **dict.fromkeys((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC)), 3)}
_TAKEN_APART |= dict.fromkeys((0xCD, 0xCE, 0xCF, 0xDE), 3)
"""Second byte of a marker -> bytes per table (DQT) or component (SOF, DHP) in its segment."""

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

_BAND_PIXELS = 1 << 18
"""Pixels that are composited at once."""

_OTHER_MAGIC = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript file"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"8BPS", "a Photoshop document (PSD)"),
    (b"v/1\1", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"qoif", "a QOI image"),
    (b"gimp xcf", "a GIMP image (XCF)"),
    (b"DDS ", "a DirectDraw surface (DDS)"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\3\4", "a ZIP archive"),
    (b"SIMPLE  =", "a FITS image"),
    (b"P7\n", "a PAM image"),
)
_MARKUP = ((b"<svg", "an SVG drawing"), (b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"))
_BOXED = {b"heic": "a HEIC image", b"mif1": "a HEIF image", b"msf1": "a HEIF image", b"avif": "an AVIF image"}
_BOXED |= {b"qt  ": "a QuickTime video", b"crx ": "a Canon raw image (CR3)"}
"""How files begin that are refused, for the sentence that says so; ISO files (14496-12) by their brand."""

_MOST_BRANDS = 1024
"""Bytes of a file's list of brands that are looked at."""

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

# Registers the decoders now, not inside the first request, and no others: Image.init() takes 40 more.
for _plugin in ("Avif", "Bmp", "Gif", "Jpeg", "Mpo", "Png", "Ppm", "Tiff", "WebP"):
    importlib.import_module(f"PIL.{_plugin}ImagePlugin")
if "HEIF" in FORMATS:
    import pillow_heif

    pillow_heif.register_heif_opener()

# What Pillow says about damaged metadata helps nobody who sent no file; per call, this would not be thread-safe.
for _category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")


class _Metered(io.BytesIO):
    """A file in memory that ends what reads it in too many small steps."""

    left = _MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ImageSizeError(
                f"the image takes more than {_MOST_READS} steps to read: too much metadata or too many small pieces; "
                "save it again without metadata"
            )
        return super().read(size)


def sniff(data: bytes) -> str | None:
    """The format that a file's first bytes promise, as in FORMATS; None where it is none of them."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _by_brand(data)
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None)


def _name(data: bytes) -> str | None:
    """What a file is that is no image for us; None where nobody knows."""
    if data[4:8] == b"ftyp":
        return _BOXED.get(data[8:12], "a video or another ISO media file")
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<"):
        return next((name for tag, name in _MARKUP if tag in start), "an XML document")
    return next((name for magic, name in _OTHER_MAGIC if data.startswith(magic)), None)


def _by_brand(data: bytes) -> str | None:
    """AVIF or HEIF, by the brands that a file claims (ISO/IEC 14496-12, 4.3; 23008-12, annex B)."""
    box = data[8 : min(int.from_bytes(data[:4], "big"), _MOST_BRANDS)]
    brands = {box[place : place + 4] for place in range(0, len(box), 4)}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIF" if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"} else None


def decode(
    data: bytes,
    *,
    colour: str = "RGB",
    exif: bool = True,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
    white: float | None = None,
    least_edge: int | None = None,
    huge_edge: int | None = None,
    room: Room | None = None,
) -> Image.Image:
    """Decode the first frame of an image file to 8-bit RGB or greyscale.

    16-bit samples are scaled (Pillow alone would clip them): of one channel by 255 / `white`, of several by dropping
    the lower byte unless `white` is given; all round down, and larger ones saturate. Transparency is composited onto
    white, CMYK (as Adobe stores it in JPEG files: inverted), YCCK and palettes are converted, colour profiles are
    ignored, the EXIF orientation is applied.

    Args:
        data: the bytes of a file in one of FORMATS.
        colour: "RGB" or "L".
        exif: whether to apply the EXIF orientation; a TIFF file's own is always applied, and one that cannot be read
            counts as none.
        max_pixels: the largest width x height; checked from the header, before anything is decoded.
        formats: those of FORMATS that are accepted.
        white: the sample of more than 8 bits that is white where the file does not say (the largest value of a PGM
            file and 12 bits of a TIFF file do); None: 65535, and 32-bit and floating-point ones are refused.
        least_edge: a JPEG file may come out at 1/2, 1/4 or 1/8 of its size, which is much faster, as long as its
            shorter edge keeps this many pixels; None: never.
        huge_edge: the same for a baseline JPEG file of more than `max_pixels`, which is refused otherwise.
        room: called when the header is read and nothing is decoded yet, with the bytes of memory that decoding takes at
            most, beside the file, and a name for the image; what it raises is raised.

    Raises:
        ImageFormatError: empty, or not in one of `formats`.
        ImageSizeError: more than `max_pixels`, more than half a mebibyte in an encoding that is slow to decode, or more
            metadata, pieces or scans than any encoder writes.
        ImageError: truncated, corrupt, or with samples that have no defined range.
    """
    kind = _kind(data, formats)
    with _in_a_sentence(kind, max_pixels):
        file, edge, streamed = _opened(data, kind, max_pixels, least_edge, huge_edge)
        whole = file.size
        small = file.draft(None, (edge, edge)) if edge is not None else None
        if small:
            _check_pixels(file.size, max_pixels)
        if room is not None:
            coefficients = 0 if streamed else whole[0] * whole[1]
            needed = bytes_to_decode(file, len(data), ranged=white is not None, coefficients=coefficients)
            room(needed, f"{kind} image of {whole[0]} x {whole[1]} pixels ({file.mode})")
        image = _loaded(file, data, white, None)
        del file  # which has its own pixels
        if small:
            image = _without_padding(image, small[1])
        turn = _turn(image) if exif else None
        image = _to_8_bit(image, white, None)
        image = image if image.mode == colour else image.convert(colour)
        if turn is not None:
            image = image.transpose(turn)
        if small:
            image.info[WHOLE_SIZE] = whole[::-1] if turn in _SIDEWAYS else whole
        return image


def inspect(data: bytes) -> Depth | None:
    """Check that an image can be decoded for some network; JPEG files small, which reads all of them, but faster.

    Returns:
        The samples of an image of more than 8 bits whose file does not say which value is white; None: any other.

    Raises:
        ImageError: see :func:`decode`; samples without a range are fine here.
    """
    kind = _kind(data, FORMATS)
    depths: list[Depth] = []
    with _in_a_sentence(kind, MAX_PIXELS):
        file, edge, _ = _opened(data, kind, MAX_PIXELS, 1, 1)
        if edge is not None:
            file.draft(None, (edge, edge))
        _to_8_bit(_loaded(file, data, None, depths), None, depths)
    return depths[0] if depths else None


def _kind(data: bytes, formats: Sequence[str]) -> str:
    if not data:
        raise ImageFormatError("the image is empty (0 bytes)")
    kind = sniff(data)
    if kind is None or kind not in formats:
        what = f"{kind} images are" if kind else f"it is {name}, which is" if (name := _name(data)) else None
        found = f"{what} not accepted" if what else "not an image in a supported format"
        raise ImageFormatError(
            f"cannot decode the image: {found} (accepted: {', '.join(formats)}); save it as JPEG or PNG"
        )
    return kind


@contextmanager
def _in_a_sentence(kind: str, max_pixels: int) -> Iterator[None]:
    """Whatever goes wrong meanwhile with an image of the format `kind`, as an ImageError."""
    try:
        yield
    except PocketzooError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageSizeError(
            f"the image has more than {min(MAX_PIXELS, max_pixels)} pixels, which are the most; save it {_SMALLER}"
        ) from None
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError and more on bad bytes.
        reason = f"its {kind} header is damaged" if isinstance(error, UnidentifiedImageError) else f"{error}"
        raise ImageError(f"cannot decode the image: {reason}; send a whole, undamaged file") from error


def _opened(
    data: bytes, kind: str, max_pixels: int, least_edge: int | None, huge_edge: int | None
) -> tuple[ImageFile.ImageFile, int | None, bool]:
    """The file with its header read and its size checked; what its shorter edge keeps if it is to be decoded small; and
    whether no coefficients of it are kept.
    """
    if kind != "JPEG":
        stream = _Metered(data)
        file = Image.open(stream, formats=(kind,))
        _check_pixels(file.size, max_pixels)
        _check_codec(file, stream, len(data))
        return file, None, True
    first_scan = _first_scan(data)
    file = _opened_jpeg(data)
    streamed = _is_streamed(file, data, first_scan)
    if huge_edge is not None and streamed and file.width * file.height > max_pixels:
        _check_pixels(file.size, _HUGE * max_pixels)
        return file, huge_edge, True
    _check_pixels(file.size, max_pixels)
    if not streamed:
        _check_scans(file, data, first_scan)
    return file, least_edge, streamed


def _opened_jpeg(data: bytes) -> ImageFile.ImageFile:
    """What Image.open does, but for its limit of pixels, which knows nothing of decoding small."""
    try:
        return JpegImagePlugin.jpeg_factory(io.BytesIO(data))
    except (SyntaxError, IndexError, TypeError, struct.error) as error:
        raise UnidentifiedImageError(str(error)) from error


def _check_pixels(size: tuple[int, int], most: int) -> None:
    width, height = size
    if width * height > most:
        raise ImageSizeError(
            f"the image has {width} x {height} pixels, at most {most} are accepted; save it {_SMALLER}"
        )


def _check_codec(image: ImageFile.ImageFile, stream: _Metered, size: int) -> None:
    codec = image.tile[0][0] if image.tile else ""
    if codec not in _SLOW_CODECS:
        return
    if size > _SLOW_BYTES:
        raise ImageSizeError(
            f"the image is {_SLOW_CODECS[codec]} of {size} bytes, at most {_SLOW_BYTES} are accepted of these; "
            "save it as PNG"
        )
    # These are read byte by byte.
    stream.left += size


def _first_scan(data: bytes) -> int:
    """Where the first scan of a JPEG file starts, found as Pillow does; the file's size where there is none.

    Raises:
        ImageSizeError: Pillow would take long to get there.
    """
    place, junk, tables, exif = 2, 0, 0, 0
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(data, place, place + _MOST_JUNK + 2)
        if found is None:
            break
        start = found.end()
        junk += start - 2 - place
        marker = data[start - 1]
        if marker == _SCAN and junk <= _MOST_JUNK:
            return start - 2
        place = start if marker in _ALONE else start + int.from_bytes(data[start : start + 2], "big")
        if marker in _TAKEN_APART:
            tables += (place - start) // _TAKEN_APART[marker]
        elif marker == _EXIF:
            exif += data.startswith(b"Exif\0\0", start + 2)
        elif marker == _PHOTOSHOP:
            tables += data.count(b"8BIM", start, place)
        if junk > _MOST_JUNK or tables > _MOST_TABLES or exif > _MOST_EXIF:
            raise ImageSizeError("the JPEG image has too much before its first scan; save it again without metadata")
    else:
        raise ImageSizeError(
            f"the JPEG image has more than {_MOST_SEGMENTS} segments before its first scan; save it again without "
            "metadata"
        )
    if len(data) - place > _MOST_JUNK:
        raise ImageSizeError("the JPEG image has too much before its first scan; save it again without metadata")
    return len(data)


def _is_streamed(image: ImageFile.ImageFile, data: bytes, place: int) -> bool:
    """Whether libjpeg decodes a JPEG file, its first scan at `place`, row by row, keeping no coefficients.

    It reads no further scan where a sequential file's first one has all components.
    """
    return "progressive" not in image.info and data[place + 4 : place + 5] == bytes((getattr(image, "layers", 0),))


def _check_scans(image: ImageFile.ImageFile, data: bytes, place: int) -> None:
    """Refuse a JPEG file of so many scans, the first one at `place`, that decoding takes long."""
    most = max(_FEW_SCANS, min(_MANY_SCANS, _SCANNED_PIXELS // (image.width * image.height)))
    scans = 0
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER_IN_SCAN.search(data, place)
        if found is None or data[found.end() - 1] == _END:
            return
        place = found.end()
        scans += data[place - 1] == _SCAN
        if scans > most:
            raise ImageSizeError(
                f"the JPEG image of {image.width} x {image.height} pixels has more than {most} scans; save it as "
                "baseline JPEG"
            )
        place += int.from_bytes(data[place : place + 2], "big")
    raise ImageSizeError(f"the JPEG image has more than {_MOST_SEGMENTS} segments; save it again")


def _loaded(image: ImageFile.ImageFile, data: bytes, white: float | None, depths: list[Depth] | None) -> Image.Image:
    if image.tile and image.tile[0][0] == "ppm":
        return _scaled_ppm(image, data, white, depths)
    if (white is not None or depths is not None) and deep_colours(image):
        kinds = (str(image.format),)
        return colours(image, lambda: Image.open(_Metered(data), formats=kinds), white=white, depths=depths)
    image.load()
    if image.format == "TIFF" and (image.mode.startswith("I;16") or image.mode in ("I", "F")):
        return one_channel(image, white=white, depths=depths)
    return image


def _without_padding(image: Image.Image, extent: tuple[float, float, float, float]) -> Image.Image:
    """An image decoded small, whose last row and column may show the image's edge only in part, to whole pixels.

    Taken for whole, they would squeeze everything by up to a pixel, which changes more than scaling itself.
    """
    _, _, width, height = extent
    if image.size == (width, height):
        return image
    return image.resize((round(width), round(height)), Image.Resampling.BICUBIC, box=extent)


def _scaled_ppm(
    image: ImageFile.ImageFile, data: bytes, white: float | None, depths: list[Depth] | None
) -> Image.Image:
    """A binary PPM file of an odd largest value, as Pillow decodes it, but not sample by sample in Python.

    The largest value that its header states is white; 65535 is only the most that fits.
    """
    _, _, offset, options = image.tile[0]
    most = int(options[1]) if isinstance(options, tuple) else 0
    width, height = image.size
    shape = (height, width, 3) if image.mode == "RGB" else (height, width)
    stored = ">u2" if most > 255 else "u1"
    raw = np.frombuffer(data, dtype=stored, count=int(np.prod(shape)), offset=offset).reshape(shape)
    if most == 65535 and depths is not None:
        depths.append(Depth(SIXTEEN, float(raw.max())))
    if most == 65535 and white is not None:
        return Image.fromarray(looked_up(raw, to_8_bits(white)))
    top = 65535 if image.mode == "I" else 255
    table = np.minimum(np.rint(np.arange(65536 if most > 255 else 256) / most * top), top).astype(np.int64)
    return Image.fromarray(looked_up(raw, table * 255 // top))


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # whatever Pillow raises on a damaged block, the image itself is fine
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _to_8_bit(image: Image.Image, white: float | None, depths: list[Depth] | None) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return one_channel(image, white=white, depths=depths)
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        return _on_white(image)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """An image with transparency on a white ground, band by band: whole, it would be in memory four times."""
    result = Image.new("RGB", image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        band = image.crop(box).convert("RGBA")
        result.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), box)
    return result
