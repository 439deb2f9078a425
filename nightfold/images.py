"""Images: from an encoded file or its bytes to uint8 pixels, the same for training and prediction.

Every decision about an odd image (transparency, orientation, bit depth, animation) is taken here
once and told in words. It does not know data sets, and it never invents pixels for a file that
cannot be read: that file is refused.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from nightfold.errors import DataRefused
from nightfold.files import fits_in_memory, require_plain

Channels = Literal[1, 3]
Size = tuple[int, int]

# Named one by one because Pillow's other readers start programs or have no use here.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 2**27
"""Largest width times height that is decoded: 134 million.

The largest cameras in use have 100 to 108 million; with transparency, the costliest case, that many
take 1.2 GB for a moment.
"""
MAX_SIDE = 65_535
"""Largest width and height, as of JPEG and GIF; to resize a longer row would take gigabytes."""
MAX_FILE_BYTES = 2**30
"""Largest file that is opened: `MAX_PIXELS` of the costliest kind without any compression."""

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
_SAY = {"L": "grey", "1": "bilevel", "P": "palette", "LA": "grey with alpha"}


@dataclass(frozen=True)
class ImageReading:
    """A decoded image.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (height, width, channels)
        0 is black.
    preparation : str
        What was done, with sizes as width x height: ``RGBA 640x480 on white -> grey 28x28``.
    """

    pixels: NDArray[np.uint8]
    preparation: str


def read_image(
    source: Path | bytes,
    *,
    channels: Channels | None = None,
    size: Size | None = None,
    where: str,
) -> ImageReading:
    """Decode one image.

    The first frame of an animation is taken. An EXIF orientation is applied. Whatever is
    transparent lies on white, as on paper and in most viewers. 16-bit values 0 to 65535 become 0
    to 255, rounded; 32-bit integers are taken as 16-bit values and floating-point pixels as 0 to
    1, and any of them beyond that range is refused because its scale is unknown. Colour becomes
    grey by the ITU-R 601 luma, as in Pillow. Resizing stretches to `size` with Pillow's bilinear
    filter, which averages when it shrinks and never overshoots.

    Parameters
    ----------
    source : Path or bytes
        A PNG, JPEG, BMP, GIF, TIFF or WebP file, or the content of one.
    channels : {1, 3}, optional
        Grey or RGB; the image's own if left out.
    size : tuple of int, optional
        (height, width) to resize to; the image's own if left out.
    where : str
        What error messages call the image: its path, or row and file.

    Raises
    ------
    DataRefused
        If there is no such file, if it is not a whole image of a known format, or if it is larger
        than `MAX_PIXELS`.

    Examples
    --------
    >>> file = io.BytesIO()
    >>> Image.new("RGBA", (6, 4)).save(file, "png")
    >>> reading = read_image(file.getvalue(), channels=1, where="a drawing")
    >>> reading.pixels.shape, int(reading.pixels.min()), reading.preparation
    ((4, 6, 1), 255, 'RGBA 6x4 on white -> grey 6x4')
    """
    if isinstance(source, Path):
        require_plain(source)
    try:
        if isinstance(source, Path) and source.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {MAX_FILE_BYTES / 2**20:,.0f} MiB")
        with warnings.catch_warnings():
            # They are about metadata, or about size, which has a limit of our own below.
            warnings.simplefilter("ignore")
            with Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS
            ) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if max(image.size) > MAX_SIDE:
                    raise ValueError(f"it is larger than {MAX_SIDE:,} pixels along a side")
                image.load()
                if image.format == "PNG":
                    _require_sound_rows(
                        source if isinstance(source, bytes) else source.read_bytes()
                    )
                return _prepared(image, channels, size, where)
    except DataRefused:
        raise
    except Image.DecompressionBombError as error:
        raise DataRefused(
            f"{where} is an image of more than {MAX_PIXELS:,} pixels: make it smaller."
        ) from error
    # Hostile bytes make Pillow's readers raise almost anything, not only OSError.
    except Exception as error:
        raise DataRefused(
            f"{where} is not a whole image that can be read ({_reason(source, error)}): replace "
            f"or remove it; the formats are {', '.join(FORMATS)}."
        ) from error


def read_images(
    items: Iterable[tuple[Path | bytes, str]],
    n: int,
    *,
    channels: Channels | None = None,
    size: Size | None = None,
) -> NDArray[np.uint8]:
    """Decode `n` images into one array.

    Parameters
    ----------
    items : iterable of (source, where)
        As `read_image` takes them.
    n : int
        How many there are, at least 1.
    channels : {1, 3}, optional
        If left out: 1 if every image is grey, else 3.
    size : tuple of int, optional
        (height, width); if left out all images must have the same.

    Returns
    -------
    ndarray of uint8, shape (n, height, width, channels)

    Raises
    ------
    DataRefused
        If an image cannot be read, or if the images differ in size and no `size` is given.
    """
    stack: NDArray[np.uint8] | None = None
    first = ""
    for position, (source, where) in enumerate(items):
        pixels = read_image(source, channels=channels, size=size, where=where).pixels
        if stack is None:
            stack, first = _room(n, pixels, where), where
        if pixels.shape[:2] != stack.shape[1:3]:
            raise DataRefused(
                f"{where} is {pixels.shape[0]}x{pixels.shape[1]} (height x width) but {first} is "
                f"{stack.shape[1]}x{stack.shape[2]}: give --size HxW to bring all to one size."
            )
        if pixels.shape[2] > stack.shape[3]:
            stack = np.repeat(stack, 3, axis=3)
        stack[position] = pixels
    assert stack is not None
    return stack


def _room(n: int, pixels: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    refusal = DataRefused(
        f"{n:,} images like {where} ({pixels.shape[0]}x{pixels.shape[1]}) do not fit into memory: "
        "give a smaller --size HxW."
    )
    # A system that lends more memory than it has ends the process when it is used.
    if not fits_in_memory(n * pixels.size):
        raise refusal
    try:
        return np.empty((n, *pixels.shape), np.uint8)
    except MemoryError as error:
        raise refusal from error


def _prepared(
    image: Image.Image, channels: Channels | None, size: Size | None, where: str
) -> ImageReading:
    was = f"{_SAY.get(image.mode, image.mode)} {image.width}x{image.height}"
    notes = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        notes.append(f"first of {frames} frames")
    # Cameras that do not know say 0; what is not in this list turns nothing.
    if image.getexif().get(0x0112) in (2, 3, 4, 5, 6, 7, 8):
        image = ImageOps.exif_transpose(image)
        notes.append("turned as its EXIF orientation says")
    if channels is None:
        channels = 1 if _is_grey(image) else 3
    mode = "L" if channels == 1 else "RGB"
    if image.mode[0] in "IF":
        values, clear = np.asarray(image), image.info.get("transparency")
        image = _eight_bits(values, where)
        notes.append("scaled to 8 bits")
        if isinstance(clear, int) and (hidden := values == clear).any():
            image = Image.fromarray(np.where(hidden, np.uint8(255), np.asarray(image)))
            notes.append("on white")
    if image.has_transparency_data:
        if image.mode != "RGBA":  # conversion to the same mode would copy
            image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            # The paper has no name, so that its memory is free again at once.
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            notes.append("on white")
        image = image.convert("RGB")
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)
    became = f"{_SAY.get(mode, mode)} {image.width}x{image.height}"
    before = " ".join([was, ", ".join(notes)]) if notes else was
    return ImageReading(pixels, before if before == became else f"{before} -> {became}")


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P":
        # GIF has no other way to store grey.
        palette = np.reshape(image.getpalette("RGB") or [], (-1, 3))
        return bool((palette == palette[:, :1]).all())
    return image.mode in _GREY_MODES


def _eight_bits(values: NDArray[Any], where: str) -> Image.Image:
    """Grey image of uint8 from one of 16-bit, 32-bit or floating-point values."""
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    # Written so that NaN is refused too.
    if not (values.min() >= 0 and values.max() <= top):
        raise DataRefused(
            f"{where} has pixel values outside 0 to {top:g}, so their scale is unknown: save it "
            "with 8 or 16 bits a channel."
        )
    pixels, flat = np.empty(values.size, np.uint8), values.reshape(-1)
    for start in range(
        0, values.size, 2**22
    ):  # float64 of the whole would take eight times as much
        part = slice(start, start + 2**22)
        pixels[part] = np.rint(flat[part] * (255.0 / top))
    return Image.fromarray(pixels.reshape(values.shape))


def _require_sound_rows(content: bytes) -> None:
    """Make sure that the pixels of a PNG are whole and as they were written.

    Pillow leaves rows that are missing black, and does not look at the check sums of pixels.

    Raises
    ------
    ValueError
        If rows are missing or a part of them fails its check sum.
    zlib.error
        If the pixels fail their check sum.
    """
    place, unpacker, found, expected = 8, zlib.decompressobj(), 0, 0
    while place + 8 <= len(content) and not unpacker.eof:
        length, kind = struct.unpack_from(">I4s", content, place)
        body = content[place + 8 : place + 8 + length]
        recorded = content[place + 8 + length : place + 12 + length]
        place += 12 + length
        if kind == b"IDAT" and zlib.crc32(kind + body).to_bytes(4, "big") != recorded:
            raise ValueError("its pixels fail their check sum")
        if kind == b"IHDR":
            expected = _bytes_of_rows(*struct.unpack_from(">IIBBBBB", body))
        while kind == b"IDAT" and body:
            # In pieces, as a few bytes may unfold to gigabytes.
            found += len(unpacker.decompress(body, 2**20))
            body = unpacker.unconsumed_tail
    if found < expected:
        raise ValueError(f"it has {found:,} of {expected:,} bytes of pixels")


def _bytes_of_rows(
    width: int, height: int, depth: int, colour: int, packing: int, filters: int, interlaced: int
) -> int:
    """Bytes of all rows of a PNG before compression, see its specification, 7.2 and 8.2."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [
            (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4),
            (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
        ]  # fmt: skip
    total = 0
    for left, top, across, down in passes:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _reason(source: Path | bytes, error: Exception) -> str:
    if not (source if isinstance(source, bytes) else source.stat().st_size):
        return "0 bytes"
    if isinstance(error, UnidentifiedImageError):
        return "not an image file, whatever its name ends with"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return str(error)[:200].rstrip(".") or type(error).__name__
