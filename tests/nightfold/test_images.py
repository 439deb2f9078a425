"""How an encoded image becomes pixels, and which ones are refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nightfold.dataset import Split
from nightfold.errors import DataRefused
from nightfold.images import ImageReading, read_image, read_images


def encoded(image: Image.Image, form: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def reading(image: Image.Image, form: str = "png", **options: object) -> ImageReading:
    return read_image(encoded(image, form, **options), where="it")


@pytest.fixture(scope="module")
def digit(mnist_train: Split) -> Image.Image:
    return Image.fromarray(np.array(mnist_train.images[0, ..., 0]))


@pytest.mark.parametrize("form", ["png", "bmp", "gif", "tiff"])
def test_lossless_formats_give_the_very_pixels(digit: Image.Image, form: str) -> None:
    got = reading(digit, form)
    np.testing.assert_array_equal(got.pixels[..., 0], np.asarray(digit))
    assert got.pixels.dtype == np.uint8
    assert got.preparation.endswith("grey 28x28")


def test_jpeg_is_close(digit: Image.Image) -> None:
    got = reading(digit, "jpeg", quality=95).pixels[..., 0].astype(int)
    assert np.abs(got - np.asarray(digit, int)).mean() < 3


@pytest.mark.parametrize(
    ("mode", "form", "channels"),
    [
        ("1", "png", 1),
        ("L", "png", 1),
        ("LA", "png", 1),
        ("I;16", "png", 1),
        ("I", "tiff", 1),
        ("F", "tiff", 1),
        ("P", "png", 1),
        ("RGB", "png", 3),
        ("RGBA", "png", 3),
        ("RGB", "jpeg", 3),
        ("CMYK", "jpeg", 3),
        ("YCbCr", "tiff", 3),
    ],
)
def test_every_mode_is_read_with_its_own_channels_and_as_either(
    mode: str, form: str, channels: int
) -> None:
    data = encoded(Image.new(mode, (6, 4)), form)
    assert read_image(data, where="it").pixels.shape == (4, 6, channels)
    assert read_image(data, channels=1, where="it").pixels.shape == (4, 6, 1)
    assert read_image(data, channels=3, size=(5, 7), where="it").pixels.shape == (5, 7, 3)


def test_a_palette_is_grey_only_if_all_its_colours_are() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 200, 100, 50])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(reading(image).pixels.ravel(), [9, 9, 9, 200, 100, 50])


def test_a_bilevel_image_is_black_and_white() -> None:
    image = Image.fromarray(np.array([[False, True]]))
    assert image.mode == "1"
    np.testing.assert_array_equal(reading(image).pixels.ravel(), [0, 255])


def test_sixteen_bits_are_scaled_not_cut() -> None:
    image = Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16))
    got = reading(image)
    np.testing.assert_array_equal(got.pixels.ravel(), [0, 1, 128, 255])
    assert got.preparation == "I;16 4x1 scaled to 8 bits -> grey 4x1"


def test_a_dark_sixteen_bit_image_stays_dark() -> None:
    image = Image.fromarray(np.full((2, 2), 200, np.uint16))
    assert reading(image).pixels.max() == 1


def test_floating_point_is_taken_as_0_to_1() -> None:
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    np.testing.assert_array_equal(reading(image, "tiff").pixels.ravel(), [0, 128, 255])


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 254]], np.float32),
        np.array([[0, np.nan]], np.float32),
        np.array([[-1, 5]], np.int32),
        np.array([[0, 70_000]], np.int32),
    ],
)
def test_values_of_unknown_scale_are_refused(values: np.ndarray) -> None:
    with pytest.raises(DataRefused, match=r"it has pixel values outside 0 to .* 8 or 16 bits"):
        reading(Image.fromarray(values), "tiff")


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    got = read_image(encoded(image), channels=1, where="it")
    np.testing.assert_array_equal(got.pixels.ravel(), [255, 0])
    assert got.preparation == "RGBA 2x1 on white -> grey 2x1"


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_transparent_colour_lies_on_white(mode: str) -> None:
    nothing: object = (0, 0, 0) if mode == "RGB" else 0
    got = read_image(encoded(Image.new(mode, (2, 2)), transparency=nothing), where="it")
    assert got.pixels.min() == 255
    assert "on white" in got.preparation


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    got = reading(Image.new("RGBA", (2, 1), (10, 20, 30, 255)))
    np.testing.assert_array_equal(got.pixels.ravel(), [10, 20, 30] * 2)
    assert got.preparation == "RGBA 2x1 -> RGB 2x1"


def test_the_exif_orientation_is_applied() -> None:
    image = Image.fromarray(np.array([[0, 0], [255, 255], [255, 255]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    got = reading(image, exif=exif)
    np.testing.assert_array_equal(got.pixels[..., 0], [[255, 255, 0], [255, 255, 0]])
    assert "turned" in got.preparation


def test_the_first_frame_of_an_animation_is_taken_and_said(digit: Image.Image) -> None:
    other = Image.new("L", (28, 28), 77)
    got = reading(digit, "gif", save_all=True, append_images=[other])
    np.testing.assert_array_equal(got.pixels[..., 0], np.asarray(digit))
    assert "first of 2 frames" in got.preparation


def test_colour_becomes_grey_by_luma() -> None:
    image = Image.new("RGB", (1, 1), (200, 100, 50))
    got = read_image(encoded(image), channels=1, where="it").pixels.item()
    assert got == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)


def test_shrinking_averages_and_never_overshoots() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    got = read_image(encoded(Image.fromarray(stripes)), size=(8, 8), where="it").pixels
    assert got.min() >= 120
    assert got.max() <= 135


def test_size_is_height_then_width() -> None:
    got = read_image(encoded(Image.new("RGB", (640, 480))), size=(10, 20), where="it")
    assert got.pixels.shape == (10, 20, 3)
    assert got.preparation == "RGB 640x480 -> RGB 20x10"


def _hostile(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def _bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header announces `side` squared pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"just a note\n", "not an image file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image file"),
        (encoded(Image.effect_noise((64, 64), 50))[:300], "truncated"),
        (encoded(Image.effect_noise((64, 64), 50), "jpeg")[:1500], "truncated"),
        (_bomb(12_000), "more than 134,217,728 pixels"),
        (_bomb(100_000), "more than 134,217,728 pixels"),
    ],
    ids=["empty", "text", "postscript", "half png", "half jpeg", "bomb", "large bomb"],
)
def test_what_is_not_a_whole_image_is_refused_in_a_sentence_that_names_it(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = _hostile(tmp_path, "digit.png", content)
    for source in (path, content):
        with pytest.raises(DataRefused, match=words) as refusal:
            read_image(source, where=str(path))
        assert str(path) in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match=r"There is no file .*gone\.png"):
        read_image(tmp_path / "gone.png", where=str(tmp_path / "gone.png"))
    with pytest.raises(DataRefused, match="not a plain file but a folder"):
        read_image(tmp_path, where=str(tmp_path))


@pytest.mark.parametrize("form", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
def test_damaged_bytes_are_read_or_refused_and_nothing_else(digit: Image.Image, form: str) -> None:
    whole = encoded(digit, form)
    random = np.random.default_rng(1)
    for _ in range(150):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = random.integers(0, len(damaged), random.integers(1, 6))
        damaged[places] = random.integers(0, 256, len(places))
        try:
            got = read_image(damaged.tobytes(), size=(28, 28), channels=1, where="it")
        except DataRefused:
            continue
        assert got.pixels.shape == (28, 28, 1)


def test_a_stack_is_grey_until_one_image_has_colour() -> None:
    grey = encoded(Image.new("L", (3, 2), 9))
    colour = encoded(Image.new("RGB", (3, 2), (1, 2, 3)))
    assert read_images([(grey, "a"), (grey, "b")], 2).shape == (2, 2, 3, 1)
    for order in ([grey, colour, grey], [colour, grey, grey]):
        stack = read_images([(data, "it") for data in order], 3)
        assert stack.shape == (3, 2, 3, 3)
        np.testing.assert_array_equal(stack[-1], 9)
        np.testing.assert_array_equal(stack[order.index(colour), 0, 0], [1, 2, 3])


def test_a_stack_of_mixed_sizes_is_refused_unless_a_size_is_given() -> None:
    items = [(encoded(Image.new("L", (3, 2))), "a"), (encoded(Image.new("L", (2, 3))), "b")]
    with pytest.raises(DataRefused, match=r"b is 3x2 .* but a is 2x3: give --size HxW"):
        read_images(items, 2)
    assert read_images(items, 2, size=(4, 4)).shape == (2, 4, 4, 1)
