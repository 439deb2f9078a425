"""The IDX files of MNIST and its family, plain or gzip.

Format: two zero bytes, a type code, the number of dimensions, one big-endian uint32 for each, then
the values, big-endian (LeCun, Cortes, Burges, "The MNIST database of handwritten digits"). The
reader believes no size that the file itself cannot hold.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from nightfold.dataset import Split
from nightfold.errors import DataRefused, UsageError
from nightfold.files import fits_in_memory, refuse_bomb, require_plain, require_room
from nightfold.sources.contents import Contents, entries, image_array, integer_labels

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_SPLITS = {"train": ("train",), "test": ("t10k", "test")}
_DEFLATE_RATIO = 1032
"""The most bytes that one byte of a deflate stream can become."""
_MAX_DIMENSIONS = 32
"""The format allows 255; images have 3 or 4."""


def files(folder: Path) -> list[Path]:
    """The files `read` would read.

    Raises
    ------
    DataRefused
        If images or labels of a split are missing or there are several.
    UsageError
        If `folder` is not a folder.
    """
    return [path for pair in _pairs(folder).values() for path in pair]


def read(folder: Path) -> Contents:
    """Read the images and labels of a folder of IDX files.

    File names hold ``images`` or ``labels`` and ``train``, ``t10k`` or ``test``, such as
    ``train-images-idx3-ubyte.gz``, ``t10k-labels.idx1-ubyte``, ``emnist-letters-train-images-...``.

    Raises
    ------
    DataRefused
        With file and byte if a file is not whole IDX, if images and labels differ in number, or
        as `files` does.
    """
    splits = {name: _read_split(*pair) for name, pair in _pairs(folder).items()}
    return Contents(splits["train"], splits.get("test"))


def read_array(path: Path) -> NDArray[Any]:
    """Read one IDX file.

    Parameters
    ----------
    path : Path
        Plain or gzip; its first bytes tell.

    Returns
    -------
    ndarray
        Of the file's shape and dtype, in the file's byte order.

    Raises
    ------
    DataRefused
        With file and byte (of the uncompressed content) if the file is not whole IDX.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            holds = path.stat().st_size * (_DEFLATE_RATIO if packed else 1)
            file = gzip.GzipFile(fileobj=raw) if packed else raw
            return _array(path, cast(IO[bytes], file), holds)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataRefused(
            f"{path} is not whole gzip ({str(error).rstrip('.')}): fetch the file again."
        ) from error
    except OSError as error:
        raise DataRefused(f"{path} cannot be read ({error.strerror}): check it.") from error


def _array(path: Path, file: IO[bytes], holds: int) -> NDArray[Any]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or not magic[3]:
        _refuse(path, 0, f"has the magic number 0x{magic.hex()}, which is not IDX")
    dtype, dimensions = np.dtype(_DTYPES[magic[2]]), magic[3]
    if dimensions > _MAX_DIMENSIONS:
        _refuse(path, 3, f"announces {dimensions} dimensions, more than {_MAX_DIMENSIONS}")
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        _refuse(path, 4 + len(header), "ends within its header")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    start = 4 + len(header)
    expected = math.prod(shape) * dtype.itemsize
    # Where one size is 0 the others are bound by nothing else.
    if start + expected > holds or math.prod(size or 1 for size in shape) >= 2**60:
        _refuse(
            path, 4, f"announces {shape} values of {dtype.itemsize} bytes, more than it can hold"
        )
    refuse_bomb(str(path), path.stat().st_size, start + expected)
    if not fits_in_memory(expected):
        _refuse(path, 4, f"holds {expected:,} bytes, more than this machine has memory")
    content = np.empty(expected, np.uint8)
    view, done = memoryview(content.data), 0
    while done < expected and (count := _read_into(path, file, view[done:], start + done)):
        done += count
    if done < expected:
        _refuse(path, start + done, f"ends {expected - done:,} bytes early")
    if _read_into(path, file, memoryview(bytearray(1)), start + expected):
        _refuse(path, start + expected, f"goes on after its {shape} values")
    return content.view(dtype).reshape(shape)


def _read_into(path: Path, file: IO[bytes], view: memoryview, offset: int) -> int:
    """Fill the start of `view`; a stream cut short or damaged is refused with the byte."""
    try:
        # In pieces, so that the byte of a damage in gzip is told to within one of them.
        return int(file.readinto(view[: 1 << 16]))  # type: ignore[attr-defined]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        _refuse(path, offset, f"has damaged gzip content ({str(error).rstrip('.')})")


def _refuse(path: Path, offset: int, what: str) -> NoReturn:
    raise DataRefused(f"{path} {what} (byte {offset:,}): fetch or write the file again.")


def _read_split(images_path: Path, labels_path: Path) -> Split:
    images = image_array(read_array(images_path), str(images_path))
    labels = integer_labels(read_array(labels_path), str(labels_path))
    if len(images) != len(labels):
        raise DataRefused(
            f"{images_path} holds {len(images):,} images (byte 4) but {labels_path} holds "
            f"{len(labels):,} labels (byte 4): they do not belong together."
        )
    return Split(images, labels)


def _pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Paths of images and labels of each split there is."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: idx: takes the folder of the IDX files.")
    pairs = {}
    for split in _SPLITS:
        images, labels = _find(folder, split, "images"), _find(folder, split, "labels")
        if images and labels:
            pairs[split] = (images, labels)
        elif images or labels or split == "train":
            missing = "labels" if images else "images"
            raise DataRefused(
                f"{folder} has no file of {split} {missing}: its name must hold {missing!r} and "
                f"{' or '.join(repr(word) for word in _SPLITS[split])}."
            )
    return pairs


def _find(folder: Path, split: str, role: str) -> Path | None:
    found = [
        path
        for path in entries(folder)
        if not path.name.startswith(".")
        and role in path.name.lower()
        and any(word in path.name.lower() for word in _SPLITS[split])
    ]
    if len(found) > 1:
        raise DataRefused(
            f"{folder} has {len(found)} files of {split} {role} "
            f"({', '.join(path.name for path in found)}): leave one."
        )
    for path in found:
        require_plain(path)
        require_room(path)
    return found[0] if found else None
