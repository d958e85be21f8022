"""Bytes to network input: every format, every way to fail, and agreement with torchvision and timm."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from tests.zoo.factories import encode, make_draft, make_input, photo_input, picture
from zoo.artefact.card import Input, Resize
from zoo.artefact.decode import WHOLE_SIZE
from zoo.artefact.preprocess import (
    FORMATS,
    GOLDEN_RULE,
    at_once,
    batch,
    decode,
    decode_for,
    encode_png,
    golden_image,
    least_edge,
    normalise,
    pixels,
    preprocess,
    scale_and_shift,
    to_input_size,
)
from zoo.base.errors import ImageError, ImageFormatError, ImageSizeError

SEEDS = [
    encode(picture(1, 9, 7), "PNG"),
    encode(picture(1, 9, 7), "JPEG", exif=Image.Exif()),
    encode(picture(1, 9, 7), "GIF"),
    encode(picture(1, 9, 7), "BMP"),
    encode(picture(1, 9, 7), "PPM"),
    encode(picture(1, 9, 7), "TIFF"),
    encode(picture(1, 9, 7), "WEBP"),
]


def _decode_or_refuse(data: bytes) -> None:
    # As in production, where warnings are no errors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = decode(data, max_pixels=10_000)
        except ImageError as error:
            assert str(error)
        else:
            assert image.mode == "RGB"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_image_error(data):
    _decode_or_refuse(data)


@settings(max_examples=300)
@given(st.sampled_from(SEEDS), st.data())
def test_damaged_files_raise_nothing_but_image_error(good, data):
    damaged = bytearray(good[: data.draw(st.integers(1, len(good)))])
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    _decode_or_refuse(bytes(damaged))


@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 12), st.sampled_from([None, 3]))
def test_png_round_trip(seed, height, width, channels):
    array = picture(seed, height, width, channels)
    assert np.array_equal(np.asarray(decode(encode_png(array), colour="L" if channels is None else "RGB")), array)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind):
    assert len(FORMATS) >= 8 and features.check("webp")
    assert np.asarray(decode(encode(np.full((5, 4, 3), 200, np.uint8), kind))) == pytest.approx(200, abs=2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"the image is empty \(0 bytes\)"),
        (b"hello", r"not an image in a supported format \(accepted: AVIF, BMP, GIF, "),
        (encode(picture(0, 60, 60), "JPEG")[:-900], r"cannot decode the image: image file is truncated"),
        (encode(np.zeros((4, 4), np.float32), "TIFF"), r"floating-point images have no defined brightness range"),
        (encode(picture(), "EPS"), r"it is a PostScript file, which is not accepted"),
        (encode(picture(), "ICO"), r"it is an icon \(ICO\), which is not accepted"),
    ],
    ids=["empty", "text", "truncated", "float", "eps", "ico"],
)
def test_what_is_refused(data, message):
    with pytest.raises(ImageError, match=message):
        decode(data)


def _png_that_claims(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + b"no pixels"
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, body)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_size_is_checked_before_decoding():
    with pytest.raises(ImageError, match="the image has 20 x 30 pixels, at most 599 are accepted"):
        decode(_png_that_claims(20, 30), max_pixels=599)
    with pytest.raises(ImageError, match="cannot decode"):
        decode(_png_that_claims(20, 30), max_pixels=600)


@pytest.mark.parametrize("edge", [10_000, 20_000])
def test_decompression_bombs(edge):
    with pytest.raises(ImageError, match="pixels"):
        decode(_png_that_claims(edge, edge))


def test_elongated_images_do_not_blow_up():
    data = encode(np.zeros((1, 4000), np.uint8))
    with pytest.raises(ImageSizeError, match="too elongated: 4000 x 1 pixels"):
        pixels(data, photo_input(28, 32), max_pixels=100_000)
    assert pixels(encode(np.zeros((1, 16), np.uint8)), photo_input(28, 32), max_pixels=16).shape == (28, 28, 3)


def test_16_bit_is_scaled_not_clipped():
    levels = np.array([[0, 256, 257, 32896, 65534, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        assert np.asarray(decode(encode(levels, kind), colour="L")).tolist() == [[0, 0, 1, 128, 254, 255]]
    pgm = b"P5 2 1 65535\n" + struct.pack(">2H", 65535, 32896)
    assert np.asarray(decode(pgm, colour="L")).tolist() == [[255, 128]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_composited_on_white(kind):
    image = Image.new("RGBA", (2, 1))
    image.putdata([(255, 0, 0, 0), (0, 0, 0, 127)])
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert np.asarray(decode(encode(image, kind, **options))).tolist() == [[[255, 255, 255], [128, 128, 128]]]


def test_grey_with_alpha_is_composited_on_white():
    image = Image.merge("LA", (Image.new("L", (1, 1), 10), Image.new("L", (1, 1), 0)))
    assert decode(encode(image), colour="L").getpixel((0, 0)) == 255


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entry_is_white(kind):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.putdata([0, 1])
    assert np.asarray(decode(encode(image, kind, transparency=0))).tolist() == [[[255, 255, 255], [200, 10, 10]]]


def test_other_colour_modes():
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.asarray(decode(encode(ink, "TIFF")))[0, 0].tolist() == [255, 0, 0]
    assert np.asarray(decode(encode(ink, "JPEG", quality=95)))[0, 0] == pytest.approx([255, 0, 0], abs=3)
    assert decode(encode(Image.new("L", (1, 1), 77))).getpixel((0, 0)) == (77, 77, 77)
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert np.asarray(decode(encode(bits), colour="L")).tolist() == [[0, 255]]
    assert decode(encode(Image.new("RGB", (1, 1), (255, 0, 0))), colour="L").getpixel((0, 0)) == 76


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_first_frame_of_an_animation(kind):
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(red, kind, save_all=True, append_images=[blue], duration=50, **options)
    assert np.asarray(decode(data))[0, 0].tolist() == [255, 0, 0]


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: a[::-1].T,
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: a.T[::-1],
}
"""EXIF 2.32, table 6: the orientation's number -> what is done to the stored rows to show them upright."""


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3)
    data = encode(stored, "PNG", exif=exif)
    assert np.array_equal(np.asarray(decode(data, colour="L")), UPRIGHT[orientation](stored))
    assert np.array_equal(np.asarray(decode(data, colour="L", exif=False)), stored)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (31, 64), (32, 32), (100, 33), (201, 333), (5, 7)])
def test_pixels_are_torchvisions_bit_for_bit(shape, kernel):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    array = picture(3, *shape)
    for size, edge in [(28, 32), (27, 32), (32, 32), (24, 27)]:
        theirs = Compose([Resize(edge, InterpolationMode(kernel)), CenterCrop(size)])(Image.fromarray(array))
        assert np.array_equal(pixels(encode(array), photo_input(size, edge, kernel)), np.asarray(theirs))


KERNELS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@settings(max_examples=400)
@given(
    st.integers(0, 999),
    st.integers(1, 160),
    st.integers(1, 160),
    st.integers(1, 64).flatmap(lambda edge: st.tuples(st.integers(1, edge), st.integers(1, edge), st.just(edge))),
    st.sampled_from(sorted(KERNELS)),
    st.sampled_from([3, None]),
)
def test_what_the_crop_throws_away_is_not_computed_and_changes_nothing(seed, height, width, sizes, kernel, channels):
    *size, edge = sizes
    array = picture(seed, height, width, channels)
    spec = dataclasses.replace(photo_input(edge, edge, kernel), size=tuple(size))
    image = Image.fromarray(array)
    target = int(edge * max(image.size) / min(image.size))
    whole = image.resize((edge, target) if width <= height else (target, edge), KERNELS[kernel])
    left, top = round((whole.width - size[1]) / 2), round((whole.height - size[0]) / 2)
    wanted = np.asarray(whole.crop((left, top, left + size[1], top + size[0])))
    ours = to_input_size(image, spec)
    assert ours.shape == (*size, channels or 1)
    assert np.array_equal(ours.reshape(wanted.shape), wanted)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(427, 640), (640, 427), (700, 300), (300, 700), (500, 500), (90, 120)])
def test_photographs_are_resized_as_a_whole_would_be(kernel, shape):
    image = Image.fromarray(picture(9, *shape))
    target = int(256 * max(shape) / min(shape))
    whole = image.resize((256, target) if shape[1] <= shape[0] else (target, 256), KERNELS[kernel])
    left, top = round((whole.width - 224) / 2), round((whole.height - 224) / 2)
    wanted = np.asarray(whole.crop((left, top, left + 224, top + 224)))
    assert np.array_equal(to_input_size(image, photo_input(224, 256, kernel)), wanted)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_network_input_is_timms(kernel):
    from timm.data import create_transform

    array = picture(4, 61, 47)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = create_transform(32, interpolation=kernel, mean=mean, std=std, crop_pct=0.875)(Image.fromarray(array))
    ours = preprocess(
        encode(array), make_input(32, resize=photo_input(32, 36, kernel).resize, crop="centre", mean=mean, std=std)
    )
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


def test_stretching_ignores_the_aspect_ratio():
    array = picture(5, 9, 21)
    ours = pixels(encode(array), make_input(12))
    assert np.array_equal(ours, np.asarray(Image.fromarray(array).resize((12, 12), Image.Resampling.BILINEAR)))
    assert pixels(encode(array), make_input(12, "L")).shape == (12, 12, 1)


def test_normalisation():
    spec = make_input(2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    array = picture(6, 2, 2)
    expected = (array / 255 - np.array(spec.mean)) / np.array(spec.std)
    ours = normalise(array, spec)
    assert ours.dtype == np.float32 and ours.flags.c_contiguous
    np.testing.assert_allclose(ours, np.moveaxis(expected, -1, 0), atol=1e-6)
    assert np.array_equal(normalise(array[None], spec)[0], ours)
    assert [part.shape for part in scale_and_shift(spec)] == [(3,), (3,)]


@given(st.integers(0, 999), st.lists(st.integers(1, 9), min_size=2, max_size=4), st.sampled_from(["RGB", "L"]))
def test_normalisation_is_one_float32_multiplication_and_addition(seed, shape, colour):
    channels = 3 if colour == "RGB" else 1
    random = np.random.default_rng(seed)
    array = random.integers(0, 256, (*shape, channels), dtype=np.uint8)
    spec = make_input(
        2, colour, mean=tuple(random.random(channels).tolist()), std=tuple((random.random(channels) + 0.1).tolist())
    )
    factor, offset = scale_and_shift(spec)
    wanted = np.moveaxis(array.astype(np.float32) * factor + offset, -1, -3)
    ours = normalise(array, spec)
    assert ours.dtype == np.float32 and ours.flags.c_contiguous
    assert ours.tobytes() == wanted.tobytes()
    room = np.full((2, *wanted.shape), np.nan, np.float32)
    assert normalise(array, spec, out=room[1]).base is room
    assert room[1].tobytes() == wanted.tobytes() and np.isnan(room[0]).all()


def test_the_three_steps_are_preprocess():
    for spec in (make_input(8), photo_input(8, 10), make_input(8, "L")):
        for data in SEEDS:
            assert np.array_equal(normalise(to_input_size(decode_for(data, spec), spec), spec), preprocess(data, spec))


def test_limits_reach_the_decoder():
    spec = make_input(8)
    with pytest.raises(ImageFormatError, match="JPEG images are not accepted"):
        decode_for(SEEDS[1], spec, formats=("PNG",))
    with pytest.raises(ImageSizeError, match="7 x 9 pixels, at most 62 are accepted"):
        decode_for(SEEDS[1], spec, max_pixels=62)


def _smooth(height: int, width: int) -> np.ndarray:
    down, right = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(down / a) * np.cos(right / b) for a, b in ((23, 31), (17, 40), (50, 12))]
    return np.stack(waves, axis=2).astype(np.uint8)


def test_a_card_without_a_measurement_decodes_whole():
    spec = photo_input(24, 32)
    assert spec.jpeg_draft is None and least_edge(spec) == 64
    assert decode_for(encode(_smooth(512, 768), "JPEG"), spec).size == (768, 512)


@pytest.mark.parametrize(
    ("spec", "size"), [(photo_input(24, 32), (96, 64)), (photo_input(24, 64), (192, 128)), (make_input(64), (192, 128))]
)
def test_large_jpeg_files_are_decoded_small_where_the_card_says_so(spec, size):
    data = encode(_smooth(512, 768), "JPEG", quality=95)
    small = dataclasses.replace(spec, jpeg_draft=make_draft())
    assert decode_for(data, small).size == size
    assert min(size) >= least_edge(spec) == 2 * (spec.resize.edge or 64)
    change = np.abs(pixels(data, small).astype(int) - pixels(data, spec))
    assert 0 < change.max() <= 6 and change.mean() < 1
    png = encode(_smooth(512, 768))
    assert np.array_equal(pixels(png, small), pixels(png, spec))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(_smooth(512, 768), "JPEG", quality=95, exif=exif)
    assert decode_for(turned, small).size == size[::-1]


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("shape", [(515, 775), (519, 769), (513, 1030), (1030, 513), (517, 518)])
def test_sizes_that_do_not_divide_are_neither_squeezed_nor_shifted(shape, orientation):
    spec = photo_input(56, 64, "bicubic")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(_smooth(*shape), "JPEG", quality=95, exif=exif)
    small = dataclasses.replace(spec, jpeg_draft=make_draft())
    size = round(shape[1] / 4), round(shape[0] / 4)
    assert decode_for(data, small).size == (size[::-1] if orientation == 6 else size)
    change = np.abs(pixels(data, small).astype(int) - pixels(data, spec))
    assert 0 < change.max() <= 6 and change.mean() < 1


def test_text_in_a_file_says_nothing_about_its_size():
    text = PngInfo()
    for key in ("whole_size", str(WHOLE_SIZE), "size"):
        text.add_text(key, "(1, 9999)")
    array, spec = picture(1, 40, 50), photo_input(24, 32)
    assert np.array_equal(pixels(encode(array, "PNG", pnginfo=text), spec), pixels(encode(array), spec))


def test_batch_stacks_what_preprocess_gives():
    files, spec = [encode(picture(seed, 9, 5)) for seed in range(3)], make_input(8)
    assert np.array_equal(batch(files, spec), np.stack([preprocess(data, spec) for data in files]))


def test_golden_image_is_the_same_everywhere():
    image = decode(golden_image(0))
    assert GOLDEN_RULE == "shake256-blocks/1"
    assert image.size == (256, 256)
    # Of the pixels, not of the PNG file, which an encoder may write differently.
    assert (
        hashlib.sha256(image.tobytes()).hexdigest()
        == "d4f795862f2f0ddd0b4eb58bb192e3435f3eebcd6f52a7533b9c24ff00b15b3d"
    )
    assert decode(golden_image(1)).tobytes() != image.tobytes()


RECTANGLES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def cover_input(size: tuple[int, int], edge: int, kernel: str = "bilinear") -> Input:
    resize = Resize(rule="cover", edge=edge, filter=kernel)
    return dataclasses.replace(make_input(32, resize=Resize(rule="stretch")), size=size, resize=resize, crop="centre")


@given(RECTANGLES, RECTANGLES, st.integers(0, 9), st.sampled_from(["bilinear", "bicubic"]))
def test_what_is_not_square_covers_its_canvas(size, shape, margin, kernel):
    spec = cover_input(size, min(size) + margin, kernel)
    high, wide = spec.canvas
    assert high >= size[0] and wide >= size[1] and min(high, wide) == min(size) + margin
    array = picture(1, *shape)
    ours = pixels(encode(array), spec)
    assert ours.shape == (*size, 3)
    # The smallest size of the same aspect ratio that covers the canvas, and its centre.
    scale = max(high / shape[0], wide / shape[1])
    whole = [max(wide, int(shape[1] * scale + 1e-9)), max(high, int(shape[0] * scale + 1e-9))]
    left, top = round((whole[0] - size[1]) / 2), round((whole[1] - size[0]) / 2)
    resized = Image.fromarray(array).resize(whole, {"bilinear": 2, "bicubic": 3}[kernel])
    assert np.array_equal(ours, np.asarray(resized.crop((left, top, left + size[1], top + size[0]))))


@given(st.integers(1, 40), RECTANGLES, st.integers(0, 9))
def test_of_a_square_cover_and_shorter_are_the_same(edge, shape, margin):
    data = encode(picture(2, *shape))
    assert np.array_equal(
        pixels(data, cover_input((edge, edge), edge + margin)), pixels(data, photo_input(edge, edge + margin))
    )


def test_the_aspect_ratio_and_most_of_the_image_stay():
    # A disc in a photograph of 4:3; of 224 x 320 from 256, timm's ResizeKeepRatio keeps 87 % of the height.
    rows, columns = np.mgrid[:600, :800]
    disc = (((rows - 300) ** 2 + (columns - 400) ** 2) < 200**2).astype(np.uint8) * 255
    spec = cover_input((224, 320), 256)
    assert spec.canvas == (256, 365)
    seen = pixels(encode(disc), spec)[:, :, 0] > 127
    height, width = seen.any(axis=1).sum(), seen.any(axis=0).sum()
    assert height == pytest.approx(width, abs=1) and height == pytest.approx(400 * 365 / 800, abs=2)


def test_jpeg_files_of_more_than_the_limit_are_decoded_small_whatever_the_input():
    data = encode(_smooth(512, 768), "JPEG")
    for spec, size in (
        (photo_input(32, 36), (192, 128)),
        (cover_input((16, 32), 18), (192, 128)),
        (make_input(32), (96, 64)),
    ):
        whole, small = (pixels(data, spec, max_pixels=most).astype(int) for most in (512 * 768, 100_000))
        assert decode_for(data, spec, max_pixels=100_000).size == size
        assert np.abs(whole - small).mean() < 1.5
    with pytest.raises(ImageSizeError, match="768 x 512 pixels, at most 100000"):
        pixels(encode(_smooth(512, 768)), photo_input(32, 36), max_pixels=100_000)


@pytest.mark.parametrize(
    ("size", "images"), [((28, 28), 64), ((224, 224), 64), ((448, 224), 32), ((1024, 1024), 3), ((4096, 4096), 1)]
)
def test_fewer_large_images_are_computed_at_once(size, images):
    assert at_once(size, most=64) == images
