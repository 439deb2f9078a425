"""NumPy archives in the form that Keras publishes: x_train, y_train, x_test, y_test.

Arrays of Python objects would be pickles and are refused.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightfold.dataset import Split
from nightfold.errors import DataRefused, UsageError
from nightfold.sources.contents import Contents, image_array, integer_labels


def files(path: Path) -> list[Path]:
    """The one file `read` would read.

    Raises
    ------
    UsageError
        If `path` is not a file.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file: npz: takes the path of one .npz file.")
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
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataRefused(f"{path} is a single .npy array: write x_train, y_train with savez.")
        with archive:
            train = _split(archive, path, "train")
            names = set(archive.files)
            return Contents(
                train, _split(archive, path, "test") if names & {"x_test", "y_test"} else None
            )
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise DataRefused(
            f"{path} cannot be read as a NumPy archive of plain arrays "
            f"({str(error).splitlines()[0].rstrip('.')}): write it again with numpy.savez."
        ) from error


def _split(archive: Any, path: Path, name: str) -> Split:
    arrays: list[NDArray[Any]] = []
    for key in (f"x_{name}", f"y_{name}"):
        if key not in archive.files:
            raise DataRefused(
                f"{path} has no array {key!r}: it holds {', '.join(archive.files) or 'none'}."
            )
        arrays.append(archive[key])
    images = image_array(arrays[0], f"x_{name} of {path}")
    labels = integer_labels(arrays[1], f"y_{name} of {path}")
    if len(images) != len(labels):
        raise DataRefused(
            f"{path} holds {len(images):,} images in x_{name} but {len(labels):,} labels in "
            f"y_{name}: they must be as many."
        )
    return Split(images, labels)
