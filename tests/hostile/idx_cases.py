"""IDX and gzip: headers that lie, streams that end, bombs."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.hostile.corpus import case, digits

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
_CODES = {"u1": 8, "i1": 9, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def idx(array: NDArray[Any], dtype: str = "u1") -> bytes:
    """The content of an IDX file."""
    header = bytes([0, 0, _CODES[dtype], array.ndim])
    return header + np.array(array.shape, ">u4").tobytes() + array.astype(dtype).tobytes()


def folder_of(folder: Path, images: bytes | None = None, labels: bytes | None = None) -> str:
    """A folder of IDX files, sound unless a content is given; its source URI."""
    pixels, classes = digits()
    for name, content, sound in ((IMAGES, images, pixels), (LABELS, labels, classes)):
        packed = content is not None and content[:2] == b"\x1f\x8b"
        whole = idx(sound) if content is None else content
        (folder / f"{name}{'.gz' if packed else ''}").write_bytes(whole)
    return f"idx:{folder}"


def zeros_packed(n_bytes: int, head: bytes = b"") -> bytes:
    """A gzip stream of `head` and then zeros, made in no time; its check sum is wrong."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    # What begins behind a full flush leans on nothing before it, so it may be repeated.
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(n_bytes % 2**20)) + packer.flush()
    return start + block * (n_bytes // 2**20) + rest


def _header(*sizes: int, code: int = 8, dimensions: int | None = None) -> bytes:
    count = len(sizes) if dimensions is None else dimensions
    return struct.pack(f">4B{len(sizes)}I", 0, 0, code, count, *sizes)


@case("idx", "sound (control)")
def _sound(folder: Path) -> str:
    return folder_of(folder)


_TOP = 2**32 - 1
_IMAGES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "no byte": (b"", ("not IDX", "byte 0")),
    "three bytes": (b"\0\0\x08", ("not IDX", "byte 0")),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(99), ("not IDX", "byte 0")),
    "magic number of little-endian": (b"\x03\x08\0\0" + bytes(99), ("not IDX", "byte 0")),
    "unknown type": (_header(60, 8, 8, code=0x0A), ("not IDX", "byte 0")),
    "no dimension": (_header(dimensions=0) + b"\x07", ("not IDX", "byte 0")),
    "header of 255 dimensions that ends": (_header(60, 8, dimensions=255), ("255 dim", "byte 3")),
    "header of 3 dimensions that ends": (_header(60, 8, dimensions=3), ("ends within", "byte 12")),
    "255 dimensions of 1": (_header(*[1] * 255) + b"\x07", ("255 dimensions", "byte 3")),
    "65 dimensions of 1": (_header(*[1] * 65) + b"\x07", ("65 dimensions", "byte 3")),
    "sizes whose product overflows 64 bits": (
        _header(_TOP, _TOP, _TOP) + bytes(64),
        ("more than it can hold", "byte 4"),
    ),
    "sizes whose product is 2**64": (
        _header(2**31, 2**31, 4) + bytes(64),
        ("more than it can hold", "byte 4"),
    ),
    "0 rows of overflowing size": (_header(0, _TOP, _TOP), (IMAGES, "byte 4")),
    "0 among four overflowing sizes": (_header(0, _TOP, _TOP, _TOP), (IMAGES, "byte 4")),
    "0 rows": (_header(0, 8, 8), ("0 images", "60 labels")),
    "images of no height": (_header(60, 0, 8), ("no train pixels",)),
    "two channels": (_header(60, 4, 4, 2) + bytes(60 * 32), ("1 or 3 channels", IMAGES)),
    "flat rows": (_header(60, 64) + bytes(60 * 64), ("shape (60, 64)", IMAGES)),
    "one byte short": (idx(digits()[0])[:-1], ("more than it can hold", "byte 4")),
    "one byte too much": (idx(digits()[0]) + b"!", ("goes on after", "byte 3,856")),
    "a second file behind": (idx(digits()[0]) * 2, ("goes on after", "byte 3,856")),
    "doubles in place of bytes": (idx(digits()[0] / 255, ">f8"), ("float64",)),
    "big-endian shorts": (idx(digits()[0], ">i2"), ("int16",)),
    "doubles that are not numbers": (
        idx(np.full((60, 8, 8), np.nan), ">f8"),
        ("float64",),
    ),
    "gzip that ends at once": (b"\x1f\x8b", ("gzip", IMAGES)),
    "gzip of nothing": (gzip.compress(b""), ("not IDX", "byte 0")),
    "half a gzip": (gzip.compress(idx(digits()[0]))[:700], ("gzip", "byte")),
    "gzip without its check sum": (gzip.compress(idx(digits()[0]))[:-8], ("gzip", "byte")),
    "gzip with a wrong check sum": (
        gzip.compress(idx(digits()[0]))[:-8] + bytes(8),
        ("CRC", "byte"),
    ),
    "gzip with a damaged middle": (
        gzip.compress(idx(digits()[0]))[:400] + bytes(40) + gzip.compress(idx(digits()[0]))[440:],
        ("gzip", "byte"),
    ),
    "gzip with junk behind": (gzip.compress(idx(digits()[0])) + b"junk", ("gzip", "byte")),
    "gzip in gzip": (gzip.compress(gzip.compress(idx(digits()[0]))), ("not IDX", "byte 0")),
    "gzip with reserved flags": (
        b"\x1f\x8b\x08\xff" + gzip.compress(idx(digits()[0]))[4:],
        ("gzip", IMAGES),
    ),
    "gzip of another method": (
        b"\x1f\x8b\x07" + gzip.compress(idx(digits()[0]))[3:],
        ("gzip", IMAGES),
    ),
    "gzip of a short file": (gzip.compress(idx(digits()[0])[:-9]), ("9 bytes early", "3,847")),
}
for _name, (_content, _words) in _IMAGES.items():

    @case("idx", f"images: {_name}", *_words)
    def _images(folder: Path, content: bytes = _content) -> str:
        return folder_of(folder, images=content)


@case("idx", "images in two gzip members")
def _members(folder: Path) -> str:
    whole = idx(digits()[0])
    return folder_of(folder, images=gzip.compress(whole[:99]) + gzip.compress(whole[99:]))


@case("idx", "gzip padded with zeros")
def _padded(folder: Path) -> str:
    return folder_of(folder, images=gzip.compress(idx(digits()[0])) + bytes(512))


@case("idx", "bomb: 1 MB that unfolds to 1 GB and says so", "unpack it", IMAGES)
def _honest_bomb(folder: Path) -> str:
    n = 2**30 // 784
    return folder_of(folder, images=zeros_packed(n * 784, _header(n, 28, 28)))


@case("idx", "bomb: 10 MB that unfolds to 10 GB and says so", "unpack it", IMAGES)
def _large_bomb(folder: Path) -> str:
    n = 10 * 2**30 // 1024
    return folder_of(folder, images=zeros_packed(n * 1024, _header(n, 32, 32)))


@case("idx", "bomb: 1 MB that unfolds to 1 GB behind 60 rows", "goes on after", "byte 3,856")
def _hidden_bomb(folder: Path) -> str:
    return folder_of(folder, images=zeros_packed(2**30, idx(digits()[0])))


@case("idx", "bomb: labels of 1 GB", "unpack it", LABELS)
def _label_bomb(folder: Path) -> str:
    return folder_of(folder, labels=zeros_packed(2**30, _header(2**30)))


@case("idx", "bomb: a gzip of 1 GB without IDX in it", "not IDX", "byte 0")
def _blind_bomb(folder: Path) -> str:
    return folder_of(folder, images=zeros_packed(2**30, b"\x01\x02\x03\x04"))


@case("idx", "bomb: a sparse file of 1 TB and a header that fits it", "memory", IMAGES)
def _sparse(folder: Path) -> str:
    uri = folder_of(folder, images=_header(2**30, 32, 32))
    os.truncate(folder / IMAGES, 16 + 2**40)
    return uri


_LABELS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "59 of 60": (idx(digits()[1][:59]), ("60 images", "59 labels", "byte 4")),
    "none": (_header(0), ("60 images", "0 labels")),
    "two columns": (_header(60, 2) + bytes(120), ("labels of shape (60, 2)", LABELS)),
    "images in their place": (idx(digits()[0]), ("labels of shape", LABELS)),
    "one class only": (idx(np.full(60, 7)), ("only the class 7",)),
    "all missing": (idx(np.full(60, np.nan), ">f4"), ("no labels",)),
    "all negative": (idx(np.full(60, -1), "i1"), ("no labels",)),
    "halves": (idx(digits()[1] + 0.5, ">f4"), ("no labels",)),
    "one out of range": (idx(np.where(np.arange(60) == 7, 200, digits()[1])), ("1 of 54",)),
    "one missing": (idx(np.where(np.arange(60) == 7, np.nan, digits()[1]), ">f4"), ("1 of 54",)),
    "one infinite": (idx(np.where(np.arange(60) == 7, np.inf, digits()[1]), ">f8"), ("1 of 54",)),
    "two thousand millions and a gap": (
        idx(np.where(np.arange(60) % 2, 2_000_000_000, 2_000_000_002), ">i4"),
        ("2000000000", "from 0"),
    ),
    "from 100,000 on with a gap": (
        idx(100_000 + 2 * digits()[1], ">i4"),
        ("100000", "from 0"),
    ),
}
for _name, (_content, _words) in _LABELS.items():

    @case("idx", f"labels: {_name}", *_words)
    def _labels(folder: Path, content: bytes = _content) -> str:
        return folder_of(folder, labels=content)


@case("idx", "a pipe in place of images", IMAGES, "not a plain file")
def _pipe(folder: Path) -> str:
    uri = folder_of(folder)
    (folder / IMAGES).unlink()
    os.mkfifo(folder / IMAGES)
    return uri


@case("idx", "an endless device in place of images", IMAGES, "not a plain file")
def _device(folder: Path) -> str:
    uri = folder_of(folder)
    (folder / IMAGES).unlink()
    (folder / IMAGES).symlink_to("/dev/zero")
    return uri


@case("idx", "test files that are links to nowhere", "t10k-images", "not a plain file")
def _lost_test(folder: Path) -> str:
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (folder / name).symlink_to(folder / "gone")
    return folder_of(folder)


@case("idx", "images that may not be read", IMAGES, "Permission denied", unprivileged=True)
def _forbidden(folder: Path) -> str:
    uri = folder_of(folder)
    (folder / IMAGES).chmod(0)
    return uri


@case("idx", "a folder that may not be listed", "Permission denied", unprivileged=True)
def _unlisted(folder: Path) -> str:
    inner = folder / "closed"
    inner.mkdir()
    folder_of(inner)
    inner.chmod(0o300)
    return f"idx:{inner}"


@case("idx", "a folder that may not be entered", "Permission denied", unprivileged=True)
def _closed(folder: Path) -> str:
    inner = folder / "closed"
    inner.mkdir()
    folder_of(inner)
    inner.chmod(0o600)
    return f"idx:{inner}"


_PATHS: dict[str, tuple[str, tuple[str, ...]]] = {
    "longer than any path": ("x" * 5000, ("too long",)),
    "a name longer than any": ("/" + "x" * 300, ("too long",)),
    "home of nobody": ("~no-such-user/x", ("~no-such-user",)),
    "with a zero byte": ("a\0b", ("a\\x00b",)),
    "with a line break": ("a\nb", ("a\\nb", "does not exist")),
    "with a terminal's escape": ("\x1b[2Jx", ("\\x1b[2Jx", "does not exist")),
    "not decodable": ("caf\udce9", ("caf\\xe9", "does not exist")),
    "a pipe": ("PIPE", ("not a folder",)),
    "a device": ("/dev/zero", ("not a folder",)),
}
for _kind in ("idx", "folder", "npz", "parquet"):
    for _name, (_path, _words) in _PATHS.items():
        if _kind in ("npz", "parquet"):
            _words = tuple(w.replace("not a folder", "not a") for w in _words)

        @case(_kind, f"path: {_name}", *_words)
        def _odd_path(folder: Path, path: str = _path, kind: str = _kind) -> str:
            if path == "PIPE":
                os.mkfifo(folder / "pipe")
                path = str(folder / "pipe")
            return f"{kind}:{path}"
