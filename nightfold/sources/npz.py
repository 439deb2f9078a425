"""NumPy archives in the form that Keras publishes: x_train, y_train, x_test, y_test.

Arrays of Python objects would be pickles and are refused.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightfold.dataset import Split
from nightfold.errors import DataRefused, UsageError
from nightfold.files import fits_in_memory, refuse_bomb, require_room
from nightfold.sources.contents import Contents, image_array, integer_labels


def files(path: Path) -> list[Path]:
    """The one file `read` would read.

    Raises
    ------
    UsageError
        If `path` is not a file.
    DataRefused
        If it is larger than the memory.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file: npz: takes the path of one .npz file.")
    require_room(path)
    return [path]


def read(path: Path) -> Contents:
    """Read ``x_train``, ``y_train`` and, if there, ``x_test`` and ``y_test``.

    Images have shape (n, height, width) or (n, height, width, channels); labels (n,) or (n, 1).

    Raises
    ------
    DataRefused
        If the file is not a whole archive, an array is missing or of another shape, or images and
        labels differ in number.
    """
    [path] = files(path)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            found = [(info.filename.removesuffix(".npy"), info) for info in archive.infolist()]
    except (NotImplementedError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise _unreadable(str(path), error) from error
    members = dict(found)
    if len(members) < len(found):
        raise DataRefused(f"{path} holds two arrays of one name: write it again with numpy.savez.")
    train = _split(path, members, "train")
    with_test = {"x_test", "y_test"} & members.keys()
    return Contents(train, _split(path, members, "test") if with_test else None)


def _split(path: Path, members: dict[str, zipfile.ZipInfo], name: str) -> Split:
    images, labels = (_array(path, members, f"{role}_{name}") for role in "xy")
    images = image_array(images, f"x_{name} of {path}")
    labels = integer_labels(labels, f"y_{name} of {path}")
    if len(images) != len(labels):
        raise DataRefused(
            f"{path} holds {len(images):,} images in x_{name} but {len(labels):,} labels in "
            f"y_{name}: they must be as many."
        )
    return Split(images, labels)


def _array(path: Path, members: dict[str, zipfile.ZipInfo], key: str) -> NDArray[Any]:
    if key not in members:
        raise DataRefused(f"{path} has no array {key!r}: it holds {', '.join(members) or 'none'}.")
    where = f"{key} of {path}"
    # Before NumPy opens it: a member that is no array is read as a whole.
    refuse_bomb(where, members[key].compress_size, members[key].file_size)
    if not fits_in_memory(members[key].file_size):
        raise DataRefused(
            f"{where} unfolds to {members[key].file_size:,} bytes, more than this machine has "
            "memory: give fewer rows."
        )
    # Hostile bytes make zipfile and NumPy's header reader raise almost anything.
    try:
        with np.load(path, allow_pickle=False) as archive:
            array = archive[key]
    except Exception as error:
        if isinstance(error, MemoryError) and str(
            error
        ):  # Python's parser raises one without words
            raise
        raise _unreadable(where, error) from error
    if not isinstance(array, np.ndarray):
        raise DataRefused(f"{where} is not an array: write it again with numpy.savez.")
    return array


def _unreadable(where: str, error: Exception) -> DataRefused:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    return DataRefused(
        f"{where} cannot be read as a NumPy archive of plain arrays ({reason}): write it again "
        "with numpy.savez."
    )
