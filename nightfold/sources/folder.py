"""A folder of images, one folder a class: PATH/<class>/* or PATH/train/<class>/*, PATH/test/....

Every file must be an image. Anything else is named and refused, because a file that is passed over
is a row that is missing; only what file managers leave behind by themselves is passed over.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nightfold.dataset import Split
from nightfold.errors import DataRefused, UsageError
from nightfold.files import require_plain
from nightfold.images import ENDINGS, Channels, Size, read_images
from nightfold.sources.contents import Contents, entries, require_clear_names

LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Names that file managers create by themselves; the only ones passed over."""


def files(folder: Path) -> list[Path]:
    """The files `read` would read, in the order of the rows.

    Raises
    ------
    DataRefused
        If there is anything but images in class folders.
    UsageError
        If `folder` is not a folder.
    """
    splits = _splits(folder).values()
    return [path for split in splits for paths in split.values() for path in paths]


def read(folder: Path, size: Size | None, channels: Channels | None) -> Contents:
    """Read all images; classes and rows in the order of their names.

    Parameters
    ----------
    folder : Path
    size : tuple of int or None
        (height, width) to resize to; without it all images must have the same size.
    channels : {1, 3} or None
        Without it 1 if every image is stored as grey, else 3.

    Raises
    ------
    DataRefused
        If an image cannot be read, if sizes differ without `size`, or as `files` does.
    """
    splits = _splits(folder)
    class_names = sorted({name for classes in splits.values() for name in classes})
    rows = {
        split: [
            (path, class_names.index(name)) for name, paths in classes.items() for path in paths
        ]
        for split, classes in splits.items()
    }
    paths = [path for split in rows.values() for path, _ in split]
    images = read_images(
        ((path, str(path)) for path in paths), len(paths), channels=channels, size=size
    )
    found, start = {}, 0
    for split, members in rows.items():
        labels = np.array([label for _, label in members], np.int64)
        found[split] = Split(images[start : start + len(members)], labels)
        start += len(members)
    return Contents(found["train"], found.get("test"), tuple(class_names))


def _splits(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Paths of the images, by split and class."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: folder: takes a folder with one per class.")
    names = {path.name for path in _entries(folder)}
    if "train" in names and names <= {"train", "test"}:
        places: dict[str, Path] = {n: folder / n for n in ("train", "test") if n in names}
    else:
        places = {"train": folder}
    splits = {split: _classes(place) for split, place in places.items()}
    require_clear_names(sorted({name for names in splits.values() for name in names}), str(folder))
    return splits


def _classes(folder: Path) -> dict[str, list[Path]]:
    places = _entries(folder)
    if not places:
        raise DataRefused(f"{folder} is empty: put the images of each class in a folder there.")
    for entry in places:
        if entry.name.startswith("."):
            raise DataRefused(
                f"{entry} is hidden, so it is hardly a class: remove it, or give it another name."
            )
        if not entry.is_dir():
            raise DataRefused(
                f"{entry} lies beside the class folders: move it into the folder of its class or "
                "away."
            )
    return {entry.name: _images(entry) for entry in places}


def _images(folder: Path) -> list[Path]:
    paths = _entries(folder)
    if not paths:
        raise DataRefused(f"The class folder {folder} holds no images: fill or remove it.")
    for path in paths:
        if path.is_dir():
            raise DataRefused(
                f"{path} is a folder inside a class folder: the layout is PATH/<class>/*, or "
                "PATH/train/<class>/* and PATH/test/<class>/* with nothing else in PATH."
            )
        if path.name.startswith(".") or path.suffix.lower() not in ENDINGS:
            raise DataRefused(
                f"{path} is not an image by its name: move it away; endings of images are "
                f"{', '.join(sorted(ENDINGS))}."
            )
        require_plain(path)
    return paths


def _entries(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if path.name not in LITTER]
