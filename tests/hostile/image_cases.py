"""Images as they are given to `nightfold predict` and found in data sets."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.hostile.corpus import MIB, case, digits, encoded


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG of these chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def rows(width: int, height: int) -> bytes:
    """IDAT of a black grey image, made in small memory."""
    packer, parts = zlib.compressobj(1), []
    line = bytes(1 + width)
    for _ in range(height):
        parts.append(packer.compress(line))
    return chunk(b"IDAT", b"".join([*parts, packer.flush()]))


def stream(width: int, height: int, depth: int, colour: int) -> bytes:
    """IDAT of noise, every row unfiltered."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    noise = np.random.default_rng(1)
    lines = [b"\0" + noise.bytes((width * bits + 7) // 8) for _ in range(height)]
    return chunk(b"IDAT", zlib.compress(b"".join(lines)))


def _digit(**options: Any) -> bytes:
    return encoded(digits()[0][0], **options)


_EXIF_WORD = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x03\0\0\0up\0\0" + bytes(4)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def frames(form: str) -> bytes:
    first, *others = (Image.fromarray(pixels) for pixels in digits()[0][:5])
    return encoded(first, form, save_all=True, append_images=others)


def _cut(content: bytes, part: float) -> bytes:
    return content[: int(len(content) * part)]


def _noise(form: str, **options: Any) -> bytes:
    values = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    return encoded(values, form, **options)


def _tiff_loop() -> bytes:
    content = bytearray(frames("tiff"))
    first = struct.unpack_from("<I", content, 4)[0]
    after = first + 2 + 12 * struct.unpack_from("<H", content, first)[0]
    struct.pack_into("<I", content, after, first)
    return bytes(content)


_GIF = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff"
_GIF_FRAME = b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00"

_REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no byte": (b"", ("0 bytes",)),
    "text": (b"just a note\n", ("not an image file",)),
    "an SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', ("not an image file",)),
    "a web page": (b"<!doctype html><title>404</title>", ("not an image file",)),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ("not an image file",)),
    "a pickle": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", ("not an image file",)),
    "an icon": (b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\x04\0\0\0\x16\0\0\0", ("not an image file",)),
    "a JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64), ("not an image file",)),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", ("not an image",)),
    "signature only": (b"\x89PNG\r\n\x1a\n", ("not a whole image",)),
    "half a PNG": (_cut(_noise("png"), 0.5), ("not a whole image",)),
    "half a JPEG": (_cut(_noise("jpeg"), 0.5), ("not a whole image",)),
    "half a BMP": (_cut(_noise("bmp"), 0.5), ("not a whole image",)),
    "half a GIF": (_cut(_noise("gif"), 0.5), ("not a whole image",)),
    "half a TIFF": (_cut(_noise("tiff"), 0.5), ("not a whole image",)),
    "half a packed TIFF": (
        _cut(_noise("tiff", compression="tiff_lzw"), 0.5),
        ("not a whole image",),
    ),
    "half a WebP": (_cut(_noise("webp"), 0.5), ("not a whole image",)),
    "a PNG of no row": (png(8, 8), ("not a whole image",)),
    "a PNG of half its rows": (png(8, 8, rows(8, 4)), ("not a whole image",)),
    "a PNG of no width": (png(0, 8, rows(8, 8)), ("not a whole image",)),
    "a PNG of an unknown depth": (png(8, 8, rows(8, 8), depth=7), ("not a whole image",)),
    "a PNG with pixels that fail their check sum": (
        lambda: _digit()[:-20] + bytes([_digit()[-20] ^ 1]) + _digit()[-19:],
        ("not a whole image",),
    ),
    "a PNG of 134 million pixels and more": (png(11_586, 11_586), ("more than 134,217,728",)),
    "a PNG of 2**62 pixels": (png(2**31 - 1, 2**31 - 1), ("more than 134,217,728",)),
    "a GIF of no frame": (b"GIF89a\xff\xff\xff\xff\0\0\0;", ("not an image file",)),
    "a GIF of 65,535 squared": (
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;",
        ("more than 134,217,728",),
    ),
    "a BMP of 2**31 squared": (
        b"BM"
        + struct.pack("<IHHI", 99, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
        ("more than 134,217,728",),
    ),
    "a PNG with a profile of 100 MB in 100 KB": (
        lambda: png(
            8, 8, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(100 * MIB), 9)), rows(8, 8)
        ),
        ("not a whole image",),
    ),
    "a PNG with a text of 100 MB in 100 KB": (
        lambda: png(
            8, 8, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(100 * MIB), 9)), rows(8, 8)
        ),
        ("not a whole image",),
    ),
    "a PNG with 100 texts of 1 MB": (
        lambda: png(
            8,
            8,
            *[chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(MIB - 8), 9))] * 100,
            rows(8, 8),
        ),
        ("not a whole image",),
    ),
    "a PNG with a chunk longer than the file": (
        png(8, 8, b"\x7f\xff\xff\xffIDAT" + bytes(64)),
        ("not a whole image",),
    ),
    "32-bit values of unknown scale": (
        lambda: encoded(np.array([[0, 70_000]], np.int32), "tiff"),
        ("outside 0 to 65535",),
    ),
    "values that are not numbers": (
        lambda: encoded(np.full((4, 4), np.nan, np.float32), "tiff"),
        ("outside 0 to 1",),
    ),
}
for _name, (_content, _words) in _REFUSED.items():

    @case("image", _name, "x.png", *_words)
    def _refused(folder: Path, content: Any = _content) -> Path:
        (folder / "x.png").write_bytes(content() if callable(content) else content)
        return folder / "x.png"


_ACCEPTED: dict[str, Any] = {
    "sound (control)": _digit,
    "1 x 1": lambda: encoded(np.zeros((1, 1), "u1")),
    "bilevel": lambda: encoded(Image.fromarray(digits()[0][0] > 9)),
    "16-bit grey": lambda: encoded(digits()[0][0].astype("u2") * 257),
    "16-bit colour": lambda: png(
        4, 4, chunk(b"IDAT", zlib.compress((b"\0" + bytes(4 * 6)) * 4)), depth=16, colour=2
    ),
    "16-bit grey with a transparent value": lambda: png(
        4,
        4,
        chunk(b"tRNS", b"\0\0"),
        chunk(b"IDAT", zlib.compress((b"\0" + bytes(8)) * 4)),
        depth=16,
    ),
    "CMYK": lambda: encoded(Image.new("CMYK", (8, 8), (9, 99, 0, 50)), "jpeg"),
    "palette with transparency": lambda: encoded(Image.new("P", (8, 8)), transparency=b"\0\x80"),
    "animated GIF": lambda: frames("gif"),
    "animated PNG": lambda: frames("png"),
    "animated WebP": lambda: frames("webp"),
    "TIFF of five pages": lambda: frames("tiff"),
    "TIFF whose pages go in a circle": _tiff_loop,
    "EXIF that turns it": lambda: _digit(form="jpeg", exif=_exif(6)),
    "EXIF that says 0": lambda: _digit(form="jpeg", exif=_exif(0)),
    "EXIF that says 99": lambda: _digit(form="jpeg", exif=_exif(99)),
    "EXIF that says a word": lambda: _digit(form="jpeg", exif=_EXIF_WORD),
    "JPEG with junk behind": lambda: _digit(form="jpeg") + bytes(999),
    "PNG with junk behind": lambda: _digit() + b"<?php",
    "BMP from the bottom up": lambda: _digit(form="bmp"),
    "a GIF of 100,000 frames": lambda: _GIF + _GIF_FRAME * 100_000 + b";",
}
for _name, _content in _ACCEPTED.items():

    @case("image", _name)
    def _accepted(folder: Path, content: Any = _content) -> Path:
        (folder / "x.png").write_bytes(content())
        return folder / "x.png"


@case("image", "100 megapixels in 100 KB", memory=400 * MIB)
def _large(folder: Path) -> Path:
    (folder / "x.png").write_bytes(png(10_000, 10_000, rows(10_000, 10_000)))
    return folder / "x.png"


@case("image", "a row of 100 million pixels", "x.png", "larger than 65,535 pixels along a side")
def _long_row(folder: Path) -> Path:
    (folder / "x.png").write_bytes(png(10**8, 1, rows(10**8, 1)))
    return folder / "x.png"


@case("image", "100 megapixels with transparency", memory=1500 * MIB)
def _large_alpha(folder: Path) -> Path:
    packer, parts = zlib.compressobj(1), []
    for _ in range(10_000):
        parts.append(packer.compress(bytes(1 + 40_000)))
    content = png(10_000, 10_000, chunk(b"IDAT", b"".join([*parts, packer.flush()])), colour=6)
    (folder / "x.png").write_bytes(content)
    return folder / "x.png"


@case("image", "100 megapixels of 16 bits", memory=1500 * MIB)
def _large_deep(folder: Path) -> Path:
    packer, parts = zlib.compressobj(1), []
    for _ in range(10_000):
        parts.append(packer.compress(bytes(1 + 20_000)))
    content = png(10_000, 10_000, chunk(b"IDAT", b"".join([*parts, packer.flush()])), depth=16)
    (folder / "x.png").write_bytes(content)
    return folder / "x.png"


@case("image", "a pipe", "x.png", "not a plain file")
def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.png")
    return folder / "x.png"


@case("image", "an endless device", "x.png", "not a plain file")
def _device(folder: Path) -> Path:
    (folder / "x.png").symlink_to("/dev/zero")
    return folder / "x.png"


@case("image", "a folder", "x.png", "not a plain file")
def _folder(folder: Path) -> Path:
    (folder / "x.png").mkdir()
    return folder / "x.png"


@case("image", "a link to itself", "x.png")
def _circle(folder: Path) -> Path:
    (folder / "x.png").symlink_to(folder / "x.png")
    return folder / "x.png"


@case("image", "a link to nowhere", "x.png", "leads nowhere")
def _lost(folder: Path) -> Path:
    (folder / "x.png").symlink_to(folder / "gone")
    return folder / "x.png"


@case("image", "a name longer than any", "too long")
def _long(folder: Path) -> Path:
    return folder / f"{'x' * 300}.png"


@case("image", "that may not be read", "Permission denied", unprivileged=True)
def _forbidden(folder: Path) -> Path:
    (folder / "x.png").write_bytes(_digit())
    (folder / "x.png").chmod(0)
    return folder / "x.png"


@case("image", "in a folder that may not be entered", "Permission denied", unprivileged=True)
def _closed(folder: Path) -> Path:
    (folder / "closed").mkdir()
    (folder / "closed" / "x.png").write_bytes(_digit())
    (folder / "closed").chmod(0o600)
    return folder / "closed" / "x.png"


for _label, _name in (("a line break", "a\nb.png"), ("a terminal's escape", "\x1b[2J.png")):

    @case("image", f"a text, its name holds {_label}", *("\\",))
    def _odd(folder: Path, name: str = _name) -> Path:
        (folder / name).write_bytes(b"text")
        return folder / name


@case("image", "a text, its name cannot be decoded", "caf\\xe9.png")
def _undecodable(folder: Path) -> Path:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    path.write_bytes(b"text")
    return path


@case("image", "a name that cannot be decoded")
def _undecodable_sound(folder: Path) -> Path:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    path.write_bytes(_digit())
    return path


def animated(n: int) -> bytes:
    """A GIF of `n` frames."""
    return _GIF + _GIF_FRAME * n + b";"


def content_of(form: str) -> bytes:
    """A small sound image of a format, to be damaged."""
    file = io.BytesIO()
    Image.fromarray(digits()[0][0]).save(file, form)
    return file.getvalue()
