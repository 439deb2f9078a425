"""The digits that benchmarks feed: MNIST as rivals read it, and as many more as memory can hold.

Files are made before anything is timed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nightfold import sources
from nightfold.dataset import Dataset, Split
from nightfold.experiment import shipped


@cache
def mnist() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Training images, their labels, test images, their labels; images (n, 28, 28).

    Read once in a process, and not to be written to.
    """
    contents = sources.read(f"parquet:{shipped('data', 'mnist')}")
    train, test = contents.train, contents.test
    arrays = (train.images[..., 0], train.labels, test.images[..., 0], test.labels)
    for array in arrays:
        array.flags.writeable = False
    return arrays


def write_snapshot(folder: Path, rows: int) -> Dataset:
    """Snapshot of the first `rows` training digits and 100 test digits."""
    x_train, y_train, x_test, y_test = mnist()
    return Dataset.write(
        folder,
        name="mnist",
        origin="mnist",
        class_names=tuple("0123456789"),
        train=Split(x_train[:rows, ..., None], y_train[:rows]),
        test=Split(x_test[:100, ..., None], y_test[:100]),
    )


def write_archive(path: Path, rows: int) -> Path:
    """NumPy archive of the first `rows` training digits and the whole test split."""
    x_train, y_train, x_test, y_test = mnist()
    np.savez(path, x_train=x_train[:rows], y_train=y_train[:rows], x_test=x_test, y_test=y_test)
    return path


def write_many(folder: Path, rows: int) -> Path:
    """IDX files of `rows` training digits, all different, and 1,000 test digits, unless there.

    Each copy of MNIST after the first is rolled by another offset, down and to the right.
    """
    if folder.exists():
        return folder
    x_train, y_train, x_test, y_test = mnist()
    folder.mkdir(parents=True)
    with (folder / "train-images-idx3-ubyte").open("wb") as file:
        file.write(_header(rows, 28, 28))
        for copy, start in enumerate(range(0, rows, len(x_train))):
            rolled = np.roll(x_train[: rows - start], divmod(copy, 28), axis=(1, 2))
            file.write(rolled.tobytes())
    labels = np.resize(y_train, rows)
    (folder / "train-labels-idx1-ubyte").write_bytes(
        _header(rows) + labels.astype(np.uint8).tobytes()
    )
    (folder / "t10k-images-idx3-ubyte").write_bytes(_header(1000, 28, 28) + x_test[:1000].tobytes())
    (folder / "t10k-labels-idx1-ubyte").write_bytes(
        _header(1000) + y_test[:1000].astype(np.uint8).tobytes()
    )
    return folder


def _header(*shape: int) -> bytes:
    """IDX header of an unsigned-byte array."""
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
