"""Dataset: an immutable, content-addressed snapshot of images and labels.

A snapshot is a folder of plain ``.npy`` arrays that any number of workers map into memory, and a
``dataset.json`` that describes them. It holds what the source held, sound or not: whether the data
may be trained on is decided by validation, not here. It never changes once written.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from nightfold.errors import DataRefused, first_line
from nightfold.store import atomic_folder, write_json

FORMAT = 1
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Split:
    """Images and labels of one split, in the order of the source.

    Attributes
    ----------
    images : ndarray, shape (n, height, width, channels)
        uint8 in sound data; other dtypes are kept as they came so that validation can name them.
    labels : ndarray, shape (n,)
        int64 class indices in sound data; float64 with NaN where a label is missing.
    """

    images: NDArray[Any]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def row_digests(self) -> list[str]:
        """Hexadecimal sha256 of each row's pixel bytes."""
        return [
            hashlib.sha256(image.data).hexdigest()
            for piece in in_pieces(self.images)
            for image in np.ascontiguousarray(piece)  # slicing a memory map row by row is slow
        ]


def in_pieces(images: NDArray[Any], size: int = 65_536) -> Iterator[NDArray[Any]]:
    """Views of `size` images after the other; what is mapped of a file is given back behind each.

    Reading a large snapshot from end to end so takes no memory of the process.
    """
    for start in range(0, len(images), size):
        yield images[start : start + size]
        give_back(images)


def give_back(images: NDArray[Any]) -> None:
    """Let go of the pages of mapped images; they stay in the cache that all processes share."""
    if isinstance(images, np.memmap) and images._mmap is not None:  # type: ignore[attr-defined]
        images._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


class _Index(BaseModel):
    """``dataset.json``, as far as it is read again."""

    format: Literal[1]
    name: str
    origin: str
    digest: str
    class_names: tuple[str, ...]


class DatasetHandle(BaseModel):
    """What tasks pass to each other instead of arrays."""

    model_config = ConfigDict(frozen=True)

    path: str
    digest: str
    name: str
    n_train: int
    n_test: int

    def open(self) -> Dataset:
        """The snapshot behind the handle, mapped into memory.

        Raises
        ------
        DataRefused
            If the snapshot is gone or is another one.
        """
        dataset = Dataset.open(self.path)
        if dataset.digest != self.digest:
            raise DataRefused(
                f"The snapshot {self.path} is not the one of this run (digest "
                f"{dataset.digest[:12]}, expected {self.digest[:12]}): run again."
            )
        return dataset


@dataclass(frozen=True)
class Dataset:
    """A snapshot with its splits mapped into memory.

    Attributes
    ----------
    path : Path
        The snapshot's folder.
    name : str
        What people call it; not part of the digest.
    origin : str
        The source URI it was read from.
    digest : str
        sha256 over shapes, dtypes, class names, pixel bytes and labels in order.
    class_names : tuple of str
        Name of each class index.
    train, test : Split
        Rows to learn from; rows held out for the one final test.
    """

    path: Path
    name: str
    origin: str
    digest: str
    class_names: tuple[str, ...]
    train: Split
    test: Split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.train.images.shape[1:]
        return int(height), int(width), int(channels)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @classmethod
    def write(
        cls,
        folder: Path,
        *,
        name: str,
        origin: str,
        class_names: tuple[str, ...],
        train: Split,
        test: Split,
    ) -> Dataset:
        """Write a snapshot under `folder`, named by its digest; the same content writes nothing.

        Parameters
        ----------
        folder : Path
            Where snapshots live (`Store.datasets`).
        name, origin : str
            For people; the first writer of a content decides.
        class_names : tuple of str
        train, test : Split
            Images of both must have the same shape.

        Returns
        -------
        Dataset
            The snapshot, opened.
        """
        digest = _digest(class_names, train, test)
        target = folder / digest[:16]
        if not (target / "dataset.json").exists():
            with atomic_folder(target) as part:
                for split_name, split in zip(SPLITS, (train, test), strict=True):
                    np.save(part / f"{split_name}_images.npy", split.images, allow_pickle=False)
                    np.save(part / f"{split_name}_labels.npy", split.labels, allow_pickle=False)
                write_json(
                    part / "dataset.json",
                    {
                        "format": FORMAT,
                        "name": name,
                        "origin": origin,
                        "digest": digest,
                        "class_names": list(class_names),
                        "n_train": len(train),
                        "n_test": len(test),
                        "image_shape": list(train.images.shape[1:]),
                    },
                )
        return cls.open(target)

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Map the snapshot at `path` into memory, read-only.

        Raises
        ------
        DataRefused
            If the folder is not a complete snapshot.
        """
        path = Path(path)
        # A damaged header makes NumPy raise almost anything.
        try:
            about = _Index.model_validate_json((path / "dataset.json").read_bytes())
            train, test = (_mapped(path, name) for name in SPLITS)
        except Exception as error:
            where = "dataset.json, " if isinstance(error, ValidationError) else ""
            raise DataRefused(
                f"The snapshot {path} cannot be read ({where}{first_line(error)}): delete that "
                "folder and run again."
            ) from error
        return cls(
            path=path,
            name=about.name,
            origin=about.origin,
            digest=about.digest,
            class_names=about.class_names,
            train=train,
            test=test,
        )

    def training_pixels(self) -> NDArray[np.uint8]:
        """The training images as a copy-on-write map of the snapshot's file.

        It shares the page cache with every other process, and libraries that take no read-only
        memory take it; what is written to it stays in this process.
        """
        pixels: NDArray[np.uint8] = np.load(
            self.path / "train_images.npy", mmap_mode="c", allow_pickle=False
        )
        return pixels

    def read_training_images(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy of some training images, read from the file and not through its map.

        Parameters
        ----------
        rows : ndarray of int64, shape (n,)
            Positions in the training split.

        Returns
        -------
        ndarray of uint8, shape (n, height, width, channels)

        Raises
        ------
        DataRefused
            If the file ends before a row.
        """
        mapped = self.train.images
        images = np.empty((len(rows), *mapped.shape[1:]), mapped.dtype)
        with (self.path / "train_images.npy").open("rb", buffering=0) as file:
            for image, row in zip(images, rows.tolist(), strict=True):
                # The map's offset is where its array begins in the file: behind the header.
                start = mapped.offset + row * image.nbytes  # type: ignore[attr-defined]
                if os.preadv(file.fileno(), [image], start) != image.nbytes:
                    raise DataRefused(
                        f"The snapshot {self.path} ends within training image {row}: delete that "
                        "folder and run again."
                    )
        return images

    @property
    def handle(self) -> DatasetHandle:
        """Path and digest, for another task to open."""
        return DatasetHandle(
            path=str(self.path),
            digest=self.digest,
            name=self.name,
            n_train=len(self.train),
            n_test=len(self.test),
        )

    def verify(self) -> None:
        """Compute the digest anew and compare.

        Raises
        ------
        DataRefused
            If the content is not what the digest says.
        """
        found = _digest(self.class_names, self.train, self.test)
        if found != self.digest:
            raise DataRefused(
                f"The snapshot {self.path} was altered (digest {found[:12]}, expected "
                f"{self.digest[:12]}): delete that folder and run again."
            )

    def limited(self, folder: Path, limit: int, seed: int) -> Dataset:
        """Snapshot of the first `limit` rows of a seeded shuffle of each split.

        Parameters
        ----------
        folder : Path
            Where snapshots live.
        limit : int
            Rows to keep of each split, at most.
        seed : int
            Seed of the shuffle.
        """

        def first_rows(split: Split) -> Split:
            rows = np.random.default_rng(seed).permutation(len(split))[:limit]
            return Split(split.images[rows], split.labels[rows])

        return Dataset.write(
            folder,
            name=self.name,
            origin=f"{self.origin} (limit {limit}, seed {seed})",
            class_names=self.class_names,
            train=first_rows(self.train),
            test=first_rows(self.test),
        )


def _mapped(path: Path, name: str) -> Split:
    """A split of the snapshot at `path`; its images are mapped, its labels read."""
    split = Split(
        np.load(path / f"{name}_images.npy", mmap_mode="r", allow_pickle=False),
        np.load(path / f"{name}_labels.npy", allow_pickle=False),
    )
    images, labels = split.images, split.labels
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{name} images of shape {images.shape} do not go with labels of shape {labels.shape}"
        )
    return split


def _digest(class_names: tuple[str, ...], train: Split, test: Split) -> str:
    """sha256 of a description of shapes, dtypes and classes, then all bytes in order."""
    whole = hashlib.sha256()
    description: dict[str, Any] = {"class_names": list(class_names)}
    for name, split in zip(SPLITS, (train, test), strict=True):
        description[name] = [
            list(split.images.shape),
            split.images.dtype.str,
            split.labels.dtype.str,
        ]
    whole.update(json.dumps(description, sort_keys=True).encode())
    for split in (train, test):
        for piece in in_pieces(split.images):
            whole.update(np.ascontiguousarray(piece).data)
        whole.update(np.ascontiguousarray(split.labels).data)
    return whole.hexdigest()
